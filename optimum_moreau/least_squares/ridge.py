"""Ridge least squares: min_V ‖X·Vᵀ − T‖² + λ‖V − W‖²,  V = (TᵀX + λW)(XᵀX + λI)⁻¹,  λ = ridge · mean(diag XᵀX).

λ is of all text that is to be fitted, also where X is of a part of it: so it is as strong there as it will be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .moments import Moments


def ridge_fit(w: Tensor, moments: Moments, ridge: float) -> Tensor:
    """Solves for V; W where nothing flows in.

    Args:
        w: W, `(out, kept)`, float64.
        moments: of X and T.
        ridge: λ, as a share of the mean of diag XᵀX.

    Returns:
        `(out, kept)`, float64.

    Raises:
        NonFiniteError: λ is too small for a Cholesky factor.
    """
    diagonal = moments.xx.diagonal().clone()
    strength = ridge * float(diagonal.mean()) / moments.part
    if not strength:
        return w
    right = torch.add(moments.tx, w, alpha=strength).T  # (kept, out)
    moments.xx.diagonal().add_(strength)  # in place: of a wide MLP it is large
    factor, failed = torch.linalg.cholesky_ex(moments.xx)
    moments.xx.diagonal().copy_(diagonal)
    if failed:
        raise NonFiniteError(f"{moments.where}: XᵀX + λI is not positive definite; give a larger ridge")
    return torch.cholesky_solve(right, factor).T
