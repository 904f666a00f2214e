"""Wanda, and its symmetric form: weights by what flows through them.

wanda                |W_kj|·√A_j                                        ‖X_j‖₂ = √A_j, of a layer's inputs
symwanda             |W_kj|·(u·‖X_j‖₂ + v·‖Y_k‖₂)                       and of its outputs (Symmetric Pruning)
symwanda-relative    |W_kj|·(1/‖W_:j‖_p + 1/‖W_k:‖_p)·‖X_j‖₂^a          p = 1: relative importance (RIA)

Of units, Wanda's structured form scores the matrices that read them, o_proj and down_proj: the unit's columns there.
Their sum stands for the literature's mean over rows, the same order, as all of these matrices have as many rows.
"""

from __future__ import annotations

from torch import Tensor

from ..config import MoreauPrunerConfig
from ..models.stream import Inputs
from .criterion import scored_by_inputs
from .papers import SYMMETRIC, WANDA_PAPER
from .relative import relative_to


def wanda(name: str, w: Tensor, inputs: Inputs, config: MoreauPrunerConfig) -> Tensor:
    """|W|·√A."""
    return w.abs() * norms(inputs.squares)


def symmetric(name: str, w: Tensor, inputs: Inputs, config: MoreauPrunerConfig) -> Tensor:
    """|W|·(u·‖X‖ + v·‖Y‖)."""
    assert config.input_weight is not None and config.output_weight is not None  # resolved
    x, y = norms(inputs.squares), norms(inputs.outputs)
    return w.abs() * (config.input_weight * x[None, :] + config.output_weight * y[:, None])


def symmetric_relative(name: str, w: Tensor, inputs: Inputs, config: MoreauPrunerConfig) -> Tensor:
    """|W|·(1/‖W_:j‖_p + 1/‖W_k:‖_p)·‖X‖^a."""
    assert config.norm_order is not None and config.exponent is not None  # resolved
    columns = w.norm(p=config.norm_order, dim=0, keepdim=True)  # (1, in)
    rows = w.norm(p=config.norm_order, dim=1, keepdim=True)  # (out, 1)
    return relative_to(w, columns, rows) * norms(inputs.squares) ** config.exponent


def norms(squares: Tensor | None) -> Tensor:
    """‖X_j‖₂ of the statistic A or B."""
    assert squares is not None  # asked for
    return squares.sqrt()


WANDA = scored_by_inputs(
    wanda,
    ("squares",),
    name="wanda",
    summary="|W|·√A, A the squared inputs",
    paper=WANDA_PAPER,
    sides=("in",),
)
SYMWANDA = scored_by_inputs(
    symmetric,
    ("squares", "outputs"),
    name="symwanda",
    summary="|W|·(‖X‖ + ‖Y‖), inputs and outputs",
    paper=SYMMETRIC,
    defaults={"input_weight": 1.0, "output_weight": 1.0},
)
SYMWANDA_RELATIVE = scored_by_inputs(
    symmetric_relative,
    ("squares",),
    name="symwanda-relative",
    summary="|W|·(1/‖W_:j‖_p + 1/‖W_k:‖_p)·‖X‖^a",
    paper=SYMMETRIC,
    defaults={"norm_order": 2.0, "exponent": 0.5},
)
