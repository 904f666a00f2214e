"""Refit: min_V ‖X·Vᵀ − T‖² + λ‖V − W‖²,  V = (TᵀX + λW)(XᵀX + λI)⁻¹,  λ = ridge · mean(diag XᵀX).

T brings the residual stream of the dense model back (aims.py), so that what earlier layers have lost is made up for as
well. λ is chosen for each matrix on text that was not fitted (chosen.py), and the next smaller of the grid is taken:
what a ridge leaves undone is the same for every token and adds up from layer to layer, and what little text leaves to
chance does not. A kin of it is GRAIL (arXiv 2602.23795).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from .step import Compensation

if TYPE_CHECKING:
    from torch import Tensor

    from ..least_squares.moments import Moments
    from .step import Fitted

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@settings
class Refit(Compensation):
    """Ridge least squares towards the dense model's residual stream."""

    name = "refit"
    summary = "ridge least squares of what stays, towards the dense model's residual stream"
    ridged = True
    keeps_zeros = False

    ridge: float | None = setting(
        f"λ, as a share of the mean of diag XᵀX (of {', '.join(f'{one:g}' for one in RIDGES)} the one below what is"
        " best for each matrix on text that was not fitted)",
        default=None,
        affects="apply",
        gt=0,
    )
    intercept: bool = setting(
        "fit a bias too; an own type holds it where the model's class cannot", default=False, affects="apply"
    )

    def candidates(self) -> Sequence[Refit]:
        """One for each λ, where none is given."""
        return (self,) if self.ridge is not None else tuple(replace(self, ridge=one) for one in RIDGES)

    def taken(self, best: int) -> int:
        """The next smaller λ."""
        return max(best - 1, 0)

    def fit(self, w: Tensor, moments: Moments) -> Fitted:
        """Solves for V.

        Raises:
            NonFiniteError: λ is too small for a Cholesky factor.
        """
        from ..least_squares.ridge import ridge_fit

        assert self.ridge is not None  # a candidate has one
        v = ridge_fit(w, moments.centred() if self.intercept else moments, self.ridge)
        return v, moments.intercept(v) if self.intercept else None
