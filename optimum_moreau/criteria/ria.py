"""Relative importance: a weight beside the others of its row and column (RIA), and beside a random sample of them.

ria         (|W_ij|/Σ_i|W_ij| + |W_ij|/Σ_j|W_ij|)·(√A_j)^a
stochria    the same, each sum over τ entries drawn from the row or column, τ = max(1, ⌊β·min(out, in)⌋)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from ..distributed import generator
from .criterion import Criterion
from .papers import RIA_PAPER, SYMMETRIC

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..models.stream import Inputs


def relative_to(w: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """|W|·(1/columns + 1/rows); 0 where W is 0, whatever stands below it."""
    import torch

    magnitude = w.abs()
    tiny = torch.finfo(w.dtype).tiny
    return magnitude / columns.clamp(min=tiny) + magnitude / rows.clamp(min=tiny)


def norms(squares: Tensor | None) -> Tensor:
    """‖X_j‖₂ = √A_j of the statistic A, or of that of outputs."""
    assert squares is not None  # asked for
    return squares.sqrt()


@settings
class RIA(Criterion):
    """Relative importance, by the inputs to the power a."""

    name = "ria"
    summary = "relative importance |W|/Σ_i|W| + |W|/Σ_j|W|, times (√A)^a"
    paper = RIA_PAPER
    needs = ("activations",)
    statistics = ("squares",)
    by_layer = True
    mask_group = "layer"

    exponent: float = setting("a: the power of the inputs' norm", default=0.5, ge=0)

    def elements(self, name: str, w: Tensor, inputs: Inputs, seed: int) -> Tensor:
        """|W|/Σ_i|W| + |W|/Σ_j|W|, times (√A)^a."""
        return relative_to(w, *self.sums(w.abs(), name, seed)) * norms(inputs.squares) ** self.exponent

    def sums(self, magnitude: Tensor, name: str, seed: int) -> tuple[Tensor, Tensor]:
        """Of |W|: over each column, `(1, in)`, and each row, `(out, 1)`."""
        return magnitude.sum(dim=0, keepdim=True), magnitude.sum(dim=1, keepdim=True)


@settings
class StochRIA(RIA):
    """RIA with sampled sums; the draw depends on the seed and the weight's name only, on every device."""

    name = "stochria"
    summary = "RIA with sampled row and column sums"
    paper = SYMMETRIC

    sample_share: float = setting(
        "β: the share of the smaller side that row and column sums are over", default=0.1, gt=0, le=1
    )

    def sums(self, magnitude: Tensor, name: str, seed: int) -> tuple[Tensor, Tensor]:
        """Over τ entries of each."""
        tau, draw = max(1, int(self.sample_share * min(magnitude.shape))), generator(seed, name)
        return _sampled(magnitude.T, tau, draw).T, _sampled(magnitude, tau, draw)


def _sampled(lines: Tensor, tau: int, draw: torch.Generator) -> Tensor:
    """Sum of τ entries of every line, drawn without replacement: `(lines, n)` → `(lines, 1)`."""
    import torch

    places = torch.rand(lines.shape, generator=draw, dtype=torch.float32, device="cpu").argsort(dim=1)[:, :tau]
    return lines.gather(1, places.to(lines.device)).sum(dim=1, keepdim=True)
