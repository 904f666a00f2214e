"""Steps that adjust what stays of a matrix, so that it gives what the whole matrix gave.

Of a matrix, W are the kept columns, X what flows into them in the pruned model, Y what the whole matrix gives in the
dense one, n tokens of each; x̄, ȳ their means. With an intercept X and Y are centred, and b = ȳ − W·x̄.

refit   min_V ‖X·Vᵀ − Y‖² + λ‖V − W‖²       V = (YᵀX + λW)(XᵀX + λI)⁻¹      λ = ridge · mean(diag XᵀX)
scale   a_k = Σ y_k·(X·w_k) / Σ (X·w_k)²    V_k = a_k·W_k                    a shift b_k beside it with an intercept
bias    b = ȳ − W·x̄                         V = W                            FLAP's, and what earlier layers changed
none    V = W

With fewer tokens than columns XᵀX is singular, and λ grows by columns/tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..criteria.papers import FLAP_PAPER
from ..errors import NonFiniteError
from .moments import Moments

# W `(out, kept)` in float64, its moments and λ's share → V, and b where there is one.
Step = Callable[[Tensor, Moments, float, bool], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Compensation:
    """One step.

    Attributes:
        summary: one line for lists and cards.
        paper: link to the source.
        step: the function.
        needs_bias: whether it is nothing without an intercept.
        ridged: whether it solves for the columns of a matrix, and so reads λ.
        keeps_zeros: whether a weight that is zero stays so.
    """

    summary: str
    paper: str
    step: Step
    needs_bias: bool = False
    ridged: bool = False
    keeps_zeros: bool = True


def refit(w: Tensor, moments: Moments, ridge: float, intercept: bool) -> tuple[Tensor, Tensor | None]:
    """Ridge least squares towards W.

    Raises:
        NonFiniteError: λ is too small for a Cholesky factor.
    """
    used = moments.centred() if intercept else moments
    diagonal = used.xx.diagonal()
    width = len(diagonal)
    strength = ridge * max(1.0, width / max(used.tokens, 1)) * float(diagonal.mean())
    if not strength:  # nothing flows in
        return w, _intercept(w, moments) if intercept else None
    right = torch.add(used.yx, w, alpha=strength).T  # (kept, out)
    diagonal = diagonal.clone()
    used.xx.diagonal().add_(strength)  # in place: of a wide MLP it is large
    factor, failed = torch.linalg.cholesky_ex(used.xx)
    used.xx.diagonal().copy_(diagonal)
    if failed:
        raise NonFiniteError(f"{moments.where}: XᵀX + λI is not positive definite; give a larger ridge")
    v = torch.cholesky_solve(right, factor).T
    return v, _intercept(v, moments) if intercept else None


def scale(w: Tensor, moments: Moments, ridge: float, intercept: bool) -> tuple[Tensor, Tensor | None]:
    """One factor per output; 1 where nothing comes out."""
    used = moments.centred() if intercept else moments
    power = (w @ used.xx * w).sum(1)
    factor = torch.where(power > 0, (w * used.yx).sum(1) / power.clamp(min=torch.finfo(w.dtype).tiny), 1.0)
    v = factor[:, None] * w
    return v, _intercept(v, moments) if intercept else None


def bias(w: Tensor, moments: Moments, ridge: float, intercept: bool) -> tuple[Tensor, Tensor | None]:
    """What went, in the mean."""
    return w, _intercept(w, moments)


def _intercept(w: Tensor, moments: Moments) -> Tensor:
    return (moments.y - w @ moments.x) / max(moments.tokens, 1)


NONE = Compensation("what stays is left as it is", "", lambda w, moments, ridge, intercept: (w, None))
REFIT = Compensation(
    "ridge least squares of what stays, towards the whole matrix's output", "", refit, ridged=True, keeps_zeros=False
)
SCALE = Compensation("one factor per output, and with an intercept a shift", "", scale)
BIAS = Compensation("the mean of what went becomes a bias (FLAP)", FLAP_PAPER, bias, needs_bias=True)
