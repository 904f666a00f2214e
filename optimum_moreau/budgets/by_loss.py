"""A budget that knows by how much the loss grows with every unit that goes: the least loss for a size.

The attention and the MLP of a layer are two blocks among all, so that it is found, not given, how much of a size heads
and channels take each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config.settings import setting, settings
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


@settings
class ByLoss(Budget):
    """Spreads by curves that are made convex of what is measured.

    Heads count several times what is measured of them: on text unlike the calibration's, and further on in a text, they
    are dearer than in its windows (results/log.md). So they go where channels have become as dear.

    Those who extend this have `rounds` and `by` too, as settings or as facts (search.py).
    """

    measured = True
    by_loss = True

    levels: int = setting(
        "parts of a block, of which one, two, … are measured gone; of a block of fewer units every number",
        default=4,
        affects="scores",
        was="search_levels",
        ge=2,
        le=64,
    )
    heads: float = setting(
        "how many times what is measured of heads counts: on other text they are dearer",
        default=10.0,
        affects="scores",
        was="search_heads",
        ge=1,
    )
    windows: int = setting(
        "windows that are measured on, of each process", default=16, affects="scores", was="search_windows", ge=1
    )

    def extent(self, shape: ModelShape, config: MoreauPrunerConfig) -> Extent:
        """The passes that it takes, with a resolved config."""
        from .extent import Extent
        from .goals import goals

        own: Any = self  # settings, or facts, of those who extend this
        blocks = shape.in_scope(config, "attention", "mlp")
        rounds = own.rounds if goals(blocks, shape, config) else 0
        return Extent.of(self.levels_of(blocks), shape.depth, rounds, own.by)

    def levels_of(self, blocks: Sequence[Block]) -> dict[Block, tuple[int, ...]]:
        """The numbers of units of each block that are measured gone: equal parts, or of few units every number."""
        from ..scoring.profiles import probes

        return {block: probes(block.total, self.levels) for block in blocks}

    def measure(self, run: Measuring) -> dict[str, Tensor]:
        """Δ_b(n) of every block of heads and channels in scope, and what else is found."""
        from ..models.placement import prepare_offloaded

        found = self.measured_of(run, self.levels_of(run.shape.in_scope(run.config, "attention", "mlp")))
        prepare_offloaded(run.model)  # accelerate's passes untie what is tied
        return found

    def measured_of(self, run: Measuring, levels: Mapping[Block, Sequence[int]]) -> dict[str, Tensor]:
        """Measures: profile name → float64 tensor on CPU."""
        raise NotImplementedError

    def curves(self, blocks: Sequence[Block], values: Ranking) -> list[np.ndarray]:
        """By how much the loss grows with the n-th unit of each block that goes; never falling with n.

        Returns:
            float64 arrays `(units − 1,)`.

        Raises:
            PlanError: what it reads was not measured.
        """
        from ..scoring.profiles import probes, profile_of
        from .losses import unit_losses

        found = []
        for block in blocks:
            measured = profile_of(values, self.name, block, int(block.total > 1))
            losses = [self.times(block) * loss for loss in measured]
            counts = probes(block.total, len(losses) + 1)
            found.append(unit_losses(block.total, list(zip(counts, losses, strict=True))))
        return found

    def times(self, block: Block) -> float:
        """How many times what is measured of a block counts."""
        return self.heads if block.kind == "attention" else 1.0

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
