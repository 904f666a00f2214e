"""Scale: a_k = Σ t_k·(X·w_k) / Σ (X·w_k)²,  V_k = a_k·W_k, and with an intercept a shift b_k."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from .step import Compensation

if TYPE_CHECKING:
    from torch import Tensor

    from ..least_squares.moments import Moments
    from .step import Fitted


@settings
class Scale(Compensation):
    """One factor per output; 1 where nothing comes out."""

    name = "scale"
    summary = "one factor per output, and with an intercept a shift"

    intercept: bool = setting(
        "fit a bias too; an own type holds it where the model's class cannot", default=False, affects="apply"
    )

    def fit(self, w: Tensor, moments: Moments) -> Fitted:
        """Finds the factors."""
        import torch

        used = moments.centred() if self.intercept else moments
        power = (w @ used.xx * w).sum(1)
        factor = torch.where(power > 0, (w * used.tx).sum(1) / power.clamp(min=torch.finfo(w.dtype).tiny), 1.0)
        v = factor[:, None] * w
        return v, moments.intercept(v) if self.intercept else None
