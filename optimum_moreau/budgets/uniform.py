"""Each layer gives the same share.

Of a size in parameters G, M of which are in channels and A in heads, both give the share p = G/(M + A), or heads less:

    p_mlp = G/(M + h·A)        p_attention = h·p_mlp

Where p_mlp would be more than two thirds, heads give the rest, up to p.
"""

from __future__ import annotations

from ..config.settings import setting, settings
from .budget import Budget

MOST = 2 / 3  # of the channels, before heads give more


@settings
class Uniform(Budget):
    """Each layer gives the same share: p_l = p."""

    name = "uniform"
    summary = "each layer gives the same share"
    of_masks = True
    of_rounds = True

    heads: float = setting(
        "of a size in parameters, the share of the heads that goes, as a part of that of the channels (1: the same; 0:"
        " none until two thirds of the channels go)",
        default=1.0,
        affects="plan",
        ge=0,
        le=1,
        symbol="h",
    )

    def attention_share(self, goal: float, attention: float, mlp: float) -> float:
        """p_attention, of G, A and M."""
        same = super().attention_share(goal, attention, mlp)
        if not attention or self.heads == 1:
            return same
        channels = goal / (mlp + self.heads * attention) if mlp + self.heads * attention else 1.0
        wanted = self.heads * channels if channels <= MOST else (goal - MOST * mlp) / attention
        return min(max(wanted, self.heads * channels), same)
