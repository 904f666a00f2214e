"""Sensitivity: blocks that cost the least loss per parameter at the size asked for give more; one level each.

Δ_b(n) is measured as a search does (search.py), for one n: about the share that is asked for. It is taken to grow with
the square of what goes, so that the marginal loss per parameter is the same in all blocks:

    Δ_b(x) = Δ_b(n)·(x/n)²        min Σ_b Δ_b(x_b)

A block counts as no cheaper than a tenth of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from .by_loss import ByLoss

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..config import MoreauPrunerConfig
    from ..models.units import Block, ModelShape
    from ..scoring.scores import Ranking
    from .search import Search

_CHEAPEST = 0.1  # of the mean


@settings
class Sensitivity(ByLoss):
    """By one measure of each block."""

    name = "sensitivity"
    summary = "blocks that cost the least loss per parameter give more, measured at one level each"

    windows: int = setting(
        "windows that are measured on, of each process", default=16, affects="scores", was="sensitivity_windows", ge=1
    )

    def as_search(self) -> Search:
        """Of one level, without rounds."""
        from .search import Search

        return Search(windows=self.windows, rounds=0)

    def levels_of(
        self, blocks: Sequence[Block], shape: ModelShape, config: MoreauPrunerConfig
    ) -> dict[Block, tuple[int, ...]]:
        """About the share that is asked for."""
        from .goals import asked_share, goals

        share = asked_share(goals(blocks, shape, config), blocks)
        return {block: one_level(block, share) for block in blocks}

    def kept(self, levels: Mapping[Block, Sequence[int]], found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of every block, n and Δ_b(n)."""
        import torch

        from ..scoring.profiles import profile_name

        made = {}
        for block, counts in levels.items():
            own = [*map(float, counts), *found[profile_name("search", block)].tolist()] or [0.0, 0.0]
            made[profile_name(self.name, block)] = torch.tensor(own, dtype=torch.float64, device="cpu")
        return made

    def curves(self, blocks: Sequence[Block], values: Ranking) -> list[np.ndarray]:
        """Straight lines through no loss."""
        import numpy as np

        from ..scoring.profiles import profile_of

        points = [profile_of(values, self.name, block, 2) for block in blocks]
        # the loss that a unit would cost per parameter and share of the block, at the whole block
        steep = [
            loss / max(n, 1.0) ** 2 * block.total / block.unit_parameters
            for block, (n, loss) in zip(blocks, points, strict=True)
        ]
        least = max(_CHEAPEST * float(np.mean([max(one, 0.0) for one in steep] or [0.0])), 1e-12)
        return [
            max(one, least) * block.unit_parameters / block.total * (2 * np.arange(block.total - 1) + 1)
            for one, block in zip(steep, blocks, strict=True)
        ]


def one_level(block: Block, share: float) -> tuple[int, ...]:
    """About a share of a block's units, one at least and never all; nothing of a block of one unit."""
    return (min(max(round(share * block.total), 1), block.total - 1),) if block.total > 1 else ()
