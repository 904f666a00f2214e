"""Refit: min_V ‖X·Vᵀ − Y‖² + λ‖V − W‖²,  V = (YᵀX + λW)(XᵀX + λI)⁻¹,  λ = ridge · mean(diag XᵀX).

With fewer tokens than columns XᵀX is singular, and λ grows by columns/tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from ..errors import NonFiniteError
from .step import Compensation

if TYPE_CHECKING:
    from torch import Tensor

    from .moments import Moments
    from .step import Fitted


@settings
class Refit(Compensation):
    """Ridge least squares towards the whole matrix's output."""

    name = "refit"
    summary = "ridge least squares of what stays, towards the whole matrix's output"
    ridged = True
    keeps_zeros = False

    ridge: float = setting("λ, as a share of the mean of diag XᵀX", default=1e-2, affects="apply", gt=0)
    intercept: bool = setting(
        "fit a bias too; an own type holds it where the model's class cannot", default=False, affects="apply"
    )

    def fit(self, w: Tensor, moments: Moments) -> Fitted:
        """Solves for V.

        Raises:
            NonFiniteError: λ is too small for a Cholesky factor.
        """
        import torch

        used = moments.centred() if self.intercept else moments
        diagonal = used.xx.diagonal()
        width = len(diagonal)
        strength = self.ridge * max(1.0, width / max(used.tokens, 1)) * float(diagonal.mean())
        if not strength:  # nothing flows in
            return w, moments.intercept(w) if self.intercept else None
        right = torch.add(used.yx, w, alpha=strength).T  # (kept, out)
        diagonal = diagonal.clone()
        used.xx.diagonal().add_(strength)  # in place: of a wide MLP it is large
        factor, failed = torch.linalg.cholesky_ex(used.xx)
        used.xx.diagonal().copy_(diagonal)
        if failed:
            raise NonFiniteError(f"{moments.where}: XᵀX + λI is not positive definite; give a larger ridge")
        v = torch.cholesky_solve(right, factor).T
        return v, moments.intercept(v) if self.intercept else None
