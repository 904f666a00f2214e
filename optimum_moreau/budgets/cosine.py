"""Cosine: p_l ∝ softmax_l(10·c_l), of layer l's input x and output y (SlimLLM).

c_l = E_t [ x_t · y_t / (‖x_t‖ ‖y_t‖) ] = 1 − block influence

Where a p_l is more than the layer can give, it gives what it can, and the others the rest, in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from ..criteria.papers import SLIM_LLM
from .budget import Budget, level

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.units import Block
    from ..scoring.profiles import Measuring
    from ..scoring.scores import Ranking
    from .budget import Shares


@settings
class Cosine(Budget):
    """Layers whose output is like their input give more."""

    name = "cosine"
    summary = "layers whose output is like their input give more: softmax of 10·cos"
    paper = SLIM_LLM
    measured = True

    temperature: float = setting("by which the similarities are multiplied", default=10.0, affects="plan", ge=0.0)

    def measure(self, run: Measuring) -> dict[str, Tensor]:
        """c of every layer."""
        from ..scoring.profiles import layer_influence, profile_name

        return {profile_name(self.name): 1 - layer_influence(run.model, run.tokens, run.config)}

    def shares(self, blocks: Sequence[Block], share: float, values: Ranking, most: Sequence[float]) -> Shares:
        """In proportion to the softmax."""
        from ..scoring.profiles import of_layers

        own = of_layers(values, self.name, blocks)
        weights = [math.exp(self.temperature * (c - max(own))) for c in own]
        return level(blocks, share, most, lambda t: [t * weight for weight in weights])
