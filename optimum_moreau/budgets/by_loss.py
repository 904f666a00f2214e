"""A budget that knows by how much the loss grows with every unit that goes: the least loss for a size.

The attention and the MLP of a layer are two blocks among all, so that it is found, not given, how much of a size heads
and channels take each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..config.settings import settings
from .budget import Budget

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..config import MoreauPrunerConfig
    from ..models.units import Block, ModelShape
    from ..scoring.profiles import Measuring
    from ..scoring.scores import Ranking
    from .budget import Shares
    from .extent import Extent
    from .search import Search


@settings
class ByLoss(Budget):
    """Spreads by curves that are convex (`curves`)."""

    measured = True
    by_loss = True

    def as_search(self) -> Search:
        """How it is measured."""
        raise NotImplementedError

    def levels_of(
        self, blocks: Sequence[Block], shape: ModelShape, config: MoreauPrunerConfig
    ) -> dict[Block, tuple[int, ...]]:
        """The numbers of units of each block that are measured gone."""
        raise NotImplementedError

    def extent(self, shape: ModelShape, config: MoreauPrunerConfig) -> Extent:
        """The passes that it takes, with a resolved config."""
        from .extent import Extent
        from .goals import goals

        blocks = shape.in_scope(config, "attention", "mlp")
        rounds = self.as_search().rounds if goals(blocks, shape, config) else 0
        return Extent.of(self.levels_of(blocks, shape, config), shape.depth, rounds)

    def measure(self, run: Measuring) -> dict[str, Tensor]:
        """Δ_b(n) of every block of heads and channels in scope, and what else `kept` makes of it."""
        from ..models.placement import prepare_offloaded
        from .searching import searched

        blocks = run.shape.in_scope(run.config, "attention", "mlp")
        levels = self.levels_of(blocks, run.shape, run.config)
        found = searched(run, self.as_search(), levels)
        prepare_offloaded(run.model)  # accelerate's passes untie what is tied
        return self.kept(levels, found)

    def kept(self, levels: Mapping[Block, Sequence[int]], found: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is kept beside the scores of what a search measured."""
        return found

    def curves(self, blocks: Sequence[Block], values: Ranking) -> list[np.ndarray]:
        """By how much the loss grows with the n-th unit of each block that goes; never falling with n.

        Returns:
            float64 arrays `(units − 1,)`.

        Raises:
            PlanError: what it reads was not measured.
        """
        raise NotImplementedError

    def found(self, values: Ranking, goals: Mapping[str, float]) -> dict[str, int] | None:
        """Counts by the blocks' names, where a plan for this very size was measured; else `None`."""
        return None

    def allocated(
        self, blocks: Sequence[Block], goal: float, values: Ranking, most: Sequence[float]
    ) -> dict[Block, float]:
        """How many units of each block go so that Σ Δ_b is least for a goal in parameters; not whole for one."""
        from .losses import allocate

        return allocate(blocks, goal, self.curves(blocks, values), most)

    def predicted(self, counts: Mapping[Block, int], values: Ranking) -> float:
        """Σ_b Δ_b(n_b) on the curves."""
        curves = self.curves(list(counts), values)
        return sum(float(curve[:count].sum()) for curve, count in zip(curves, counts.values(), strict=True))

    def shares(self, blocks: Sequence[Block], share: float, values: Ranking, most: Sequence[float]) -> Shares:
        """So that Σ Δ_b is least."""
        goal = share * sum(block.total * block.unit_parameters for block in blocks)
        removed = self.allocated(blocks, goal, values, most)
        return {block: removed[block] / block.total for block in blocks}
