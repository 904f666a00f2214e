"""Relative importance: a weight beside the others of its row and column (RIA), and beside a random sample of them.

ria         (|W_ij|/Σ_i|W_ij| + |W_ij|/Σ_j|W_ij|)·(√A_j)^a
stochria    the same, each sum over τ entries drawn from the row or column, τ = max(1, ⌊β·min(out, in)⌋)
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..config import MoreauPrunerConfig
from ..models.stream import Inputs
from .criterion import scored_by_inputs
from .papers import RIA_PAPER, SYMMETRIC


def relative_to(w: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """|W|·(1/columns + 1/rows); 0 where W is 0, whatever stands below it."""
    magnitude = w.abs()
    tiny = torch.finfo(w.dtype).tiny
    return magnitude / columns.clamp(min=tiny) + magnitude / rows.clamp(min=tiny)


def ria(name: str, w: Tensor, inputs: Inputs, config: MoreauPrunerConfig) -> Tensor:
    """Relative importance, by the inputs to the power a."""
    assert config.exponent is not None and inputs.squares is not None  # resolved; asked for
    columns, rows = w.abs().sum(dim=0, keepdim=True), w.abs().sum(dim=1, keepdim=True)
    return relative_to(w, columns, rows) * inputs.squares.sqrt() ** config.exponent


def stochastic_ria(name: str, w: Tensor, inputs: Inputs, config: MoreauPrunerConfig) -> Tensor:
    """The same with sampled sums; the draw depends on the seed and the weight's name only, on every device."""
    assert config.exponent is not None and config.sample_share is not None and inputs.squares is not None
    out, width = w.shape
    tau = max(1, int(config.sample_share * min(out, width)))
    digest = hashlib.sha256(f"{config.seed}/{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
    magnitude = w.abs()
    of_columns = _sampled(magnitude.T, tau, generator)  # (in, 1)
    of_rows = _sampled(magnitude, tau, generator)  # (out, 1)
    return relative_to(w, of_columns.T, of_rows) * inputs.squares.sqrt() ** config.exponent


def _sampled(lines: Tensor, tau: int, generator: torch.Generator) -> Tensor:
    """Sum of τ entries of every line, drawn without replacement: `(lines, n)` → `(lines, 1)`."""
    places = torch.rand(lines.shape, generator=generator, dtype=torch.float32, device="cpu").argsort(dim=1)[:, :tau]
    return lines.gather(1, places.to(lines.device)).sum(dim=1, keepdim=True)


RIA = scored_by_inputs(
    ria,
    ("squares",),
    name="ria",
    summary="relative importance |W|/Σ_i|W| + |W|/Σ_j|W|, times (√A)^a",
    paper=RIA_PAPER,
    mask_group="layer",
    defaults={"exponent": 0.5},
)
STOCHRIA = scored_by_inputs(
    stochastic_ria,
    ("squares",),
    name="stochria",
    summary="RIA with sampled row and column sums",
    paper=SYMMETRIC,
    mask_group="layer",
    defaults={"exponent": 0.5, "sample_share": 0.1},
)
