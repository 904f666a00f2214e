"""One ranking over all layers of z = (s − mean_b)/std_b, each block b its own (FLAP)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..config.settings import settings
from ..criteria.papers import FLAP_PAPER
from .budget import Budget

if TYPE_CHECKING:
    from torch import Tensor


@settings
class ZScore(Budget):
    """One ranking of standardised scores."""

    name = "zscore"
    summary = "one ranking of all units by their scores, standardised in each block"
    paper = FLAP_PAPER
    ranks = True
    of_rounds = True

    def rank(self, score: Tensor, unit_parameters: int) -> Tensor:
        """z of the units of one block, `(units,)`; those removed before (−∞) do not count, and go first."""
        there = ~score.isneginf()
        mean = score[there].mean() if there.any() else score.new_zeros(())
        deviation = (score[there] - mean).square().mean().sqrt() if there.any() else score.new_ones(())
        z = (score - mean) / deviation if deviation > 0 else score.new_zeros(score.shape)
        return z.where(there, -math.inf)
