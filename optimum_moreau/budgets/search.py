"""Search: blocks whose loss costs the model the least give more, as told alone and then together.

Δ_b(n) is by how much the model departs from the dense one while the n lowest-scored units of block b alone are gone,
the rest of the block adjusted by itself (supernet.py) where the compensation will adjust it. The attention and the MLP
of a layer are two blocks. One greedy allocation over all of them gives a plan for any size (losses.py); that for the
size asked for is improved in rounds, in which it is told how blocks act together (neighbourhood.py). It is kept beside
the scores: a plan of another size goes by the first measure alone.

Steps are told to second order (fisher.py) or measured one by one (probing.py); whole plans are always measured.
Týr-the-Pruner (https://arxiv.org/abs/2503.09657) and EvoPress (https://arxiv.org/abs/2410.14649) draw their steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ..config.settings import setting, settings
from .by_loss import ByLoss

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.units import Block
    from ..scoring.profiles import Measuring
    from ..scoring.scores import Ranking


@settings
class Search(ByLoss):
    """By what is measured."""

    name = "search"
    summary = "blocks without which the model departs least from the dense one give more, alone and then together"
    paper = "https://arxiv.org/abs/2503.09657"

    objective: Literal["kl", "loss"] = setting(
        "what is measured: the divergence from the dense model's predictions, or the next-token loss",
        default="kl",
        affects="scores",
        was="search_objective",
    )
    by: Literal["gradients", "passes"] = setting(
        "how a step of a block is measured: to second order, of one pass forward and backward for all, or by a forward"
        " pass of its own",
        default="gradients",
        affects="scores",
        was="search_by",
    )
    rounds: int = setting(
        "in which the neighbourhood of the plan is measured with all blocks together",
        default=2,
        affects="scores",
        was="search_rounds",
        ge=0,
        le=100,
    )
    minutes: float | None = setting(
        "bound on the time: less text is read, and rounds end sooner (as long as it takes)",
        default=None,
        affects="scores",
        was="search_minutes",
        gt=0,
    )

    def measured_of(self, run: Measuring, levels: Mapping[Block, Sequence[int]]) -> dict[str, Tensor]:
        """Δ_b(n) of every block, and the best plan found for the size asked for."""
        from .searching import searched

        return searched(run, self, levels)

    def found(self, values: Ranking, goals: Mapping[str, float]) -> dict[str, int] | None:
        """What the rounds found, where the goals are those that they had."""
        from ..scoring.profiles import profile_name
        from .goals import same
        from .searching import FOUND, GOAL

        start, of = profile_name(FOUND) + ".", profile_name(GOAL) + "."
        theirs = {name.removeprefix(of): float(values[name]) for name in values if name.startswith(of)}
        if not theirs or not same(goals, theirs):
            return None
        return {name.removeprefix(start): int(values[name]) for name in values if name.startswith(start)}
