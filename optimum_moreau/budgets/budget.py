"""What a budget is: which share p_l of the units of layer l goes, p in the mean over parameters.

Nothing here, and nothing that a budget's file imports at its top, needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from ..config.settings import Share, setting, settings

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.units import Block
    from ..scoring.profiles import Measuring
    from ..scoring.scores import Ranking

    Shares = dict[Block, float]

_STEPS = 100  # of a bisection: to the last bit


@settings
class Budget:
    """How a share is spread, and which units never go.

    Attributes:
        name: its name in the registry.
        summary: one line for lists and cards; empty: nothing to say.
        paper: link to the source.
        measured: it reads calibration text, beside what the criterion reads.
        ranks: there are no shares: one ranking over all layers.
        of_masks: it spreads zeros, too.
        of_rounds: it can be followed in several rounds, each scored as the one before left the model.
        by_loss: it says how much of a size heads and channels take (by_loss.py).
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    measured: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    of_masks: ClassVar[bool] = False
    of_rounds: ClassVar[bool] = False
    by_loss: ClassVar[bool] = False

    protect: Share = setting(
        "share of each MLP's channels, the lowest-scored, that stay; the next-lowest go instead",
        default=0.0,
        affects="plan",
    )
    protect_outliers: float | None = setting(
        "M: a head or channel stays that hands on more than M times the mean of its block, as root mean square",
        default=None,
        affects="plan",
        ge=1.0,
    )

    def measure(self, run: Measuring) -> dict[str, Tensor]:
        """Measures what it reads of the layers; only where it is `measured`.

        Returns:
            Profile name → float64 tensor on CPU (scoring/profiles.py).
        """
        return {}

    def shares(self, blocks: Sequence[Block], share: float, values: Ranking, most: Sequence[float]) -> Shares:
        """Spreads a share of the units over blocks of one kind, each of another layer.

        Args:
            blocks: at least one.
            share: p.
            values: of `UnitScores`, with what was measured.
            most: the largest legal share of each block.

        Returns:
            Block → p_l.

        Raises:
            PlanError: what it reads was not measured.
        """
        return dict.fromkeys(blocks, share)

    def attention_share(self, goal: float, attention: float, mlp: float) -> float:
        """The share of the heads that goes of a size in parameters: that of the channels.

        Args:
            goal: the size.
            attention: parameters of all heads in scope.
            mlp: of all channels in scope.
        """
        return goal / ((attention + mlp) or 1.0)

    def rank(self, score: Tensor, unit_parameters: int) -> Tensor:
        """What units of a block are ranked by, among those of other blocks; only where it `ranks`."""
        return score / unit_parameters


def level(
    blocks: Sequence[Block], share: float, most: Sequence[float], parts: Callable[[float], list[float]]
) -> Shares:
    """The parts of a level t, each within [0, most], at which their mean over parameters is the share.

    Args:
        blocks: of one kind.
        share: p.
        most: the largest legal share of each block.
        parts: t → part of each block; they grow with t.
    """
    sizes = [float(block.total * block.unit_parameters) for block in blocks]
    goal = share * sum(sizes)

    def clipped(t: float) -> list[float]:
        return [min(max(part, 0.0), limit) for part, limit in zip(parts(t), most, strict=True)]

    def removed(t: float) -> float:
        return sum(size * part for size, part in zip(sizes, clipped(t), strict=True))

    if goal <= 0:
        return dict.fromkeys(blocks, 0.0)
    low, high = 0.0, 1.0
    while removed(high) < min(goal, sum(size * limit for size, limit in zip(sizes, most, strict=True))) * (1 - 1e-12):
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if removed(middle) < goal else (low, middle)
    return dict(zip(blocks, clipped(high), strict=True))


def protects(budget: Budget) -> bool:
    """Whether some units never go."""
    return bool(budget.protect) or budget.protect_outliers is not None
