"""Rank correlation of two criteria's, or two runs', scores."""

from __future__ import annotations

import pandas as pd
from torch import Tensor


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, of two tensors `(n,)`; 1 if neither tells its entries apart, 0 if only one does."""
    frame = pd.DataFrame({"first": first.numpy(), "second": second.numpy()})
    if (frame.nunique() == 1).any():
        return float((frame.nunique() == 1).all())
    return float(frame.corr(method="spearman").iloc[0, 1])


def ranks_of(scores: Tensor) -> tuple[int, ...]:
    """The rank of each score, 1 for the lowest; of equal ones the first is lower."""
    return tuple(pd.Series(scores.numpy()).rank(method="first").astype(int).tolist())
