"""Rank correlation of two criteria's, or two runs', scores."""

from __future__ import annotations

from scipy.stats import rankdata, spearmanr
from torch import Tensor


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, of two tensors `(n,)`; 1 if neither tells its entries apart, 0 if only one does."""
    alike = [bool((scores == scores[0]).all()) for scores in (first, second)]
    if any(alike):
        return float(all(alike))
    return round(float(spearmanr(first.numpy(), second.numpy()).statistic), 12)  # the same ranks give 1


def ranks_of(scores: Tensor) -> tuple[int, ...]:
    """The rank of each score, 1 for the lowest; of equal ones the first is lower."""
    return tuple(rankdata(scores.numpy(), method="ordinal").astype(int).tolist())
