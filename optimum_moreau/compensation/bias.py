"""Bias: V = W,  b = t̄ − W·x̄: FLAP's, and what earlier layers changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.settings import settings
from ..criteria.papers import FLAP_PAPER
from .step import Compensation

if TYPE_CHECKING:
    from torch import Tensor

    from ..least_squares.moments import Moments
    from .step import Fitted


@settings
class Bias(Compensation):
    """The mean of what went becomes a bias."""

    name = "bias"
    summary = "the mean of what went becomes a bias (FLAP)"
    paper = FLAP_PAPER

    @property
    def fits_biases(self) -> bool:
        """It is nothing without."""
        return True

    def fit(self, w: Tensor, moments: Moments) -> Fitted:
        """What went, in the mean."""
        return w, moments.intercept(w)
