"""Sensitivity: blocks that cost the least give more, as one pass forward and backward tells to second order.

Δ_b(n) is about by how much the model departs from the dense one with n units of block b gone (fisher.py); it takes no
pass of its own for each block and n, as a search does, and knows as little of how blocks act together as its first
measure. Where the compensation adjusts what stays, the units' matrices are adjusted (supernet.py), which takes one pass
more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from ..config.settings import settings
from .by_loss import ByLoss

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.units import Block
    from ..scoring.profiles import Measuring
    from .extent import By


@settings
class Sensitivity(ByLoss):
    """By the Fisher information."""

    name = "sensitivity"
    summary = "blocks that cost the least to second order (Fisher information) give more; one pass forward and backward"
    paper = "https://arxiv.org/abs/1412.1193"

    by: ClassVar[By] = "gradients"
    rounds: ClassVar[int] = 0

    def measured_of(self, run: Measuring, levels: Mapping[Block, Sequence[int]]) -> dict[str, Tensor]:
        """Δ_b(n) of every block."""
        from ..scoring.profiles import profile_name
        from .search import Search
        from .searching import searched

        found = searched(run, Search(by=self.by, levels=self.levels, windows=self.windows, rounds=self.rounds), levels)
        return {profile_name(self.name, block): found[profile_name("search", block)] for block in levels}
