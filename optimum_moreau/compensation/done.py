"""What a compensation did to a matrix, a block and a layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Adjusted:
    """One matrix that was adjusted.

    Attributes:
        name: e.g. `layers.3.mlp.down_proj`.
        tokens: that it was fitted on.
        error_before: ‖X·Wᵀ − T‖²/‖T‖² of the kept columns as they were.
        error_after: after a fit, on tokens that it did not see (chosen.py).
        ridge: λ that was chosen; `None`: the step has none, or nothing lowered the error, and the matrix is as it was.
    """

    name: str
    tokens: int
    error_before: float
    error_after: float
    ridge: float | None = None


@dataclass(frozen=True)
class Trained:
    """One block that was trained.

    Attributes:
        name: e.g. `layers.3.mlp`.
        steps: after which its state was taken; 0: the refit's is the best.
        error_before: L of the refit, on windows that were not trained on (but fitted on).
        error_after: L of what was taken, on the same.
    """

    name: str
    steps: int
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Done:
    """One layer.

    Attributes:
        matrices: that were adjusted, attention's first.
        trained: blocks that were trained, likewise.
    """

    matrices: tuple[Adjusted, ...] = ()
    trained: tuple[Trained, ...] = ()
