"""How far a matrix is adjusted: as lowers its error on text that was not fitted, of two folds A and B.

    e(step) = ‖X_B·V_Aᵀ − T_B‖² + ‖X_A·V_Bᵀ − T_A‖²,        V_F what the step fits on fold F

Of a step's candidates (a ridge of different strength) the one of the least e fits both folds together, or what the step
takes in its place (a softer ridge), as long as its e is below e(V = W). Where none is, nothing is adjusted. The moments
give every e without a further pass over the text.
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
    size, candidates = a.size + b.size, step.candidates()
    before = a.squares(w) + b.squares(w)
    errors = [b.squares(*one.fit(w, a)) + a.squares(*one.fit(w, b)) for one in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    place = taken if errors[taken := step.taken(best)] < before else best
    if not errors[place] < before:
        return Chosen(w, None, None, before / size, before / size)
    fitted, intercept = candidates[place].fit(w, a.absorb(b))
    return Chosen(fitted, intercept, candidates[place].damping, before / size, errors[place] / size)
