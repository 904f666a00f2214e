"""Wanda, and its symmetric form: weights by what flows through them.

wanda                |W_kj|·√A_j                                        ‖X_j‖₂ = √A_j, of a layer's inputs
symwanda             |W_kj|·(u·‖X_j‖₂ + v·‖Y_k‖₂)                       and of its outputs (Symmetric Pruning)
symwanda-relative    |W_kj|·(1/‖W_:j‖_p + 1/‖W_k:‖_p)·‖X_j‖₂^a          p = 1: relative importance (RIA)

Of units, Wanda's structured form scores the matrices that read them, o_proj and down_proj: the unit's columns there.
Their sum stands for the literature's mean over rows, the same order, as all of these matrices have as many rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from .criterion import Criterion
from .papers import SYMMETRIC, WANDA_PAPER
from .ria import norms, relative_to

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.stream import Inputs


@settings
class Wanda(Criterion):
    """|W|·√A, of the matrices that read the units."""

    name = "wanda"
    summary = "|W|·√A, A the squared inputs"
    paper = WANDA_PAPER
    needs = ("activations",)
    statistics = ("squares",)
    by_layer = True
    sides = ("in",)

    def elements(self, name: str, w: Tensor, inputs: Inputs, seed: int) -> Tensor:
        """|W|·√A."""
        return w.abs() * norms(inputs.squares)


@settings
class SymWanda(Criterion):
    """|W|·(u·‖X‖ + v·‖Y‖), inputs and outputs."""

    name = "symwanda"
    summary = "|W|·(‖X‖ + ‖Y‖), inputs and outputs"
    paper = SYMMETRIC
    needs = ("activations",)
    statistics = ("squares", "outputs")
    by_layer = True

    input_weight: float = setting("u: how much the inputs weigh", default=1.0, ge=0)
    output_weight: float = setting("v: how much the outputs weigh", default=1.0, ge=0)

    def elements(self, name: str, w: Tensor, inputs: Inputs, seed: int) -> Tensor:
        """|W|·(u·‖X‖ + v·‖Y‖)."""
        x, y = norms(inputs.squares), norms(inputs.outputs)
        return w.abs() * (self.input_weight * x[None, :] + self.output_weight * y[:, None])


@settings
class SymWandaRelative(Criterion):
    """|W|·(1/‖W_:j‖_p + 1/‖W_k:‖_p)·‖X‖^a."""

    name = "symwanda-relative"
    summary = "|W|·(1/‖W_:j‖_p + 1/‖W_k:‖_p)·‖X‖^a"
    paper = SYMMETRIC
    needs = ("activations",)
    statistics = ("squares",)
    by_layer = True

    norm_order: float = setting("p of the norms of rows and columns", default=2.0, gt=0)
    exponent: float = setting("a: the power of the inputs' norm", default=0.5, ge=0)

    def elements(self, name: str, w: Tensor, inputs: Inputs, seed: int) -> Tensor:
        """|W|·(1/‖W_:j‖_p + 1/‖W_k:‖_p)·‖X‖^a."""
        columns = w.norm(p=self.norm_order, dim=0, keepdim=True)  # (1, in)
        rows = w.norm(p=self.norm_order, dim=1, keepdim=True)  # (out, 1)
        return relative_to(w, columns, rows) * norms(inputs.squares) ** self.exponent
