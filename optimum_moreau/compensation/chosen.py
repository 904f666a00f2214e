"""How far a matrix is adjusted: as lowers its error on text that was not fitted, of two folds A and B.

    e(step) = ‖X_B·V_Aᵀ − T_B‖² + ‖X_A·V_Bᵀ − T_A‖²,        V_F what the step fits on fold F

Of a step's candidates (a ridge of different strength) the one of the least e fits both folds together; where none is
below e(V = W), nothing is adjusted. The moments give every e without a further pass over the text.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..least_squares.moments import Moments
from .step import Compensation


@dataclass(frozen=True)
class Chosen:
    """What a matrix becomes.

    Attributes:
        w: `(out, kept)`, float64.
        b: of an intercept; `None`: there is none.
        ridge: λ of the candidate that was taken, where it has one.
        before: e(V = W) / ‖T‖².
        after: e / ‖T‖² of what was taken.
    """

    w: Tensor
    b: Tensor | None
    ridge: float | None
    before: float
    after: float


def choose(step: Compensation, w: Tensor, folds: tuple[Moments, Moments]) -> Chosen:
    """Fits a matrix.

    Args:
        step: whose candidates there are.
        w: W, `(out, kept)`, float64.
        folds: A and B; afterwards A holds the sums of both.

    Raises:
        NonFiniteError: a candidate cannot be solved for.
    """
    a, b = folds
    size = a.size + b.size
    best: Compensation | None = None
    least = (before := a.squares(w) + b.squares(w))
    for candidate in step.candidates():
        error = b.squares(*candidate.fit(w, a)) + a.squares(*candidate.fit(w, b))
        if error < least:
            best, least = candidate, error
    if best is None:
        return Chosen(w, None, None, before / size, before / size)
    best = step.taken(best)
    fitted, intercept = best.fit(w, a.absorb(b))
    return Chosen(fitted, intercept, best.damping, before / size, least / size)
