"""What a mask did to a model: zeros of every matrix, whether the pattern holds, what a refinement gained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..files import Record

SPARSITY_NAME = "sparsity_summary.json"


@dataclass(frozen=True)
class MatrixSparsity:
    """One matrix.

    Attributes:
        name: e.g. `layers.3.mlp.down_proj`.
        zeros: number of weights that are zero.
        total: number of weights.
        holds: whether the pattern holds.
        error_before: Σ_rows |ε| of the mask (masks/refine.py), where it was refined.
        error_after: after the refinement.
        swaps: weights that came back in it.
        retained_before: share of the score (of sparsegpt, the static one) that the n:m mask keeps without a permutation
            of the inputs, where there is one.
        retained_after: with it, and before a refinement.
    """

    name: str
    zeros: int
    total: int
    holds: bool
    error_before: float | None = None
    error_after: float | None = None
    swaps: int = 0
    retained_before: float | None = None
    retained_after: float | None = None

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.total


@dataclass(frozen=True)
class SparsitySummary(Record):
    """A masked model.

    Attributes:
        pattern: `unstructured`, or n:m.
        requested: share of zeros that was asked for.
        matrices: those in scope.
        parameters: of the whole model.
    """

    what: ClassVar[str] = "a sparsity summary"

    pattern: str
    requested: float
    matrices: tuple[MatrixSparsity, ...]
    parameters: int

    @property
    def achieved(self) -> float:
        """Share of zeros in the matrices in scope."""
        return sum(one.zeros for one in self.matrices) / sum(one.total for one in self.matrices)

    @property
    def of_model(self) -> float:
        """Zeros as a share of all the model's parameters."""
        return sum(one.zeros for one in self.matrices) / self.parameters

    @property
    def holds(self) -> bool:
        """Whether the pattern holds in every matrix."""
        return all(one.holds for one in self.matrices)

    @property
    def error(self) -> tuple[float, float, int] | None:
        """Of a refinement: Σ_rows |ε| over all matrices before and after it, and the weights that came back."""
        refined = [one for one in self.matrices if one.error_before is not None and one.error_after is not None]
        if not refined:
            return None
        before, after = (sum(getattr(one, name) for one in refined) for name in ("error_before", "error_after"))
        return before, after, sum(one.swaps for one in refined)

    @property
    def retained(self) -> tuple[float, float] | None:
        """Of a permutation: the mean share of the score that the mask keeps without and with it, where it could be."""
        permuted = [one for one in self.matrices if one.retained_before is not None and one.retained_after is not None]
        if not permuted:
            return None
        names, total = ("retained_before", "retained_after"), sum(one.total for one in permuted)
        before, after = (sum(getattr(one, name) * one.total for one in permuted) / total for name in names)
        return before, after

    @property
    def gains(self) -> list[str]:
        """What a refinement and a permutation gained, one line each."""
        lines = []
        if self.error is not None:
            before, after, swaps = self.error
            error = f"{before:.4g} → {after:.4g}"
            lines.append(f"the refinement brought {swaps:,} weights back; mean error of the rows {error}")
        if self.retained is not None:
            before, after = self.retained
            lines.append(f"the permutation: its masks keep {before:.1%} → {after:.1%} of the score")
        return lines

    def by_layer(self) -> Mapping[str, float]:
        """Share of zeros of each layer."""
        zeros, totals = Counter[str](), Counter[str]()
        for one in self.matrices:
            layer = one.name.split(".")[1]
            zeros[layer] += one.zeros
            totals[layer] += one.total
        return {layer: zeros[layer] / total for layer, total in totals.items()}

    def problem(self) -> str:
        """What makes these counts none that a mask can have; empty if nothing does."""
        for one in self.matrices:
            if not (0 <= one.zeros <= one.total and one.total and len(one.name.split(".")) > 2):
                return f"{one.zeros} of {one.total} weights of '{one.name}'"
        return "" if self.matrices and self.parameters > 0 else "it names no matrices"
