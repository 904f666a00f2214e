"""Refinements of a mask: by what each prunes a kept weight, in the place of one that comes back (refine.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..criteria.papers import DSNOT_PAPER, SYMMETRIC
from ..criteria.ria import relative_to

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.stream import Inputs


class DSnoT:
    """The kept weight of the smallest |W|·√A goes."""

    name = "dsnot"
    summary = "weights change places, so that a row keeps its mean output"
    paper = DSNOT_PAPER

    def cost(self, w: Tensor, inputs: Inputs) -> Tensor:
        """What each weight costs if it goes, float32 `(out, in)`; `inputs` have squares."""
        assert inputs.squares is not None  # asked for
        return w.abs() * inputs.squares.sqrt()


class R2DSnoT(DSnoT):
    """The kept weight of the smallest (|W|/Σ_i|W| + |W|/Σ_j|W|)·(√A)^½ goes."""

    name = "r2-dsnot"
    summary = "the same, what goes chosen by relative importance"
    paper = SYMMETRIC

    def cost(self, w: Tensor, inputs: Inputs) -> Tensor:
        """What each weight costs if it goes, float32 `(out, in)`; `inputs` have squares."""
        assert inputs.squares is not None  # asked for
        relative = relative_to(w, w.abs().sum(dim=0, keepdim=True), w.abs().sum(dim=1, keepdim=True))
        return relative * inputs.squares.sqrt().sqrt()


REFINEMENTS = {one.name: one for one in (DSnoT(), R2DSnoT())}
