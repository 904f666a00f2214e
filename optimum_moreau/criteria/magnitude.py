"""Magnitude: Σ|W|^p over the unit's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..config.settings import settings
from .criterion import Criterion
from .papers import FILTER_PRUNING

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.stream import Inputs


@settings
class Magnitude(Criterion):
    """|W|, p = 1."""

    name = "magnitude"
    summary = "Σ|W|, p = 1"
    paper = FILTER_PRUNING
    mask_group = "layer"
    by_layer = True
    power: ClassVar[int] = 1

    def elements(self, name: str, w: Tensor, inputs: Inputs, seed: int) -> Tensor:
        """|W|^p."""
        return w.abs() ** self.power


@settings
class MagnitudeL2(Magnitude):
    """|W|², p = 2."""

    name = "magnitude-l2"
    summary = "Σ|W|², p = 2"
    power = 2
