"""Search: layers whose silent units cost the least calibration loss give more.

Δ_b(n) is by how much the calibration loss grows while the n lowest-scored units of block b alone are silent, for n
about a quarter, a half, and three quarters of them (`probes`). budgets/losses.py measures it, and makes counts of it.

The attention and the MLP of a layer are searched as two blocks. A search takes one forward pass over the calibration
text, the first 64 to 128 windows of each process (`search_windows`; all, where there are fewer), for the model as it
is, and one for each block in scope and each n; it begins at the block's layer, with the hidden states that one pass
more has brought there. Of L layers all in scope these are 2 + 3·(L + 1) whole passes (`search_passes`). A search knows
nothing of how blocks act together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config.settings import settings
from .budget import Budget

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.units import Block
    from ..scoring.profiles import Measuring
    from ..scoring.scores import Ranking
    from .budget import Shares


@settings
class Search(Budget):
    """By the measured loss."""

    name = "search"
    summary = "layers whose silent units cost the least calibration loss give more"
    measured = True

    def measure(self, run: Measuring) -> dict[str, Tensor]:
        """Δ_b(n) of every block of heads and channels in scope."""
        from ..models.placement import prepare_offloaded
        from .losses import search

        found = search(run.model, run.shape.in_scope(run.config, "attention", "mlp"), run.scores, run.batches)
        prepare_offloaded(run.model)  # accelerate's passes untie what is tied
        return found

    def shares(self, blocks: Sequence[Block], share: float, values: Ranking, most: Sequence[float]) -> Shares:
        """So that Σ Δ_b is least."""
        from .losses import allocate

        goal = share * sum(block.total * block.unit_parameters for block in blocks)
        removed = allocate(blocks, goal, values, most)
        return {block: removed[block] / block.total for block in blocks}
