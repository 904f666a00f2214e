"""Each layer gives the same share."""

from __future__ import annotations

from ..config.settings import settings
from .budget import Budget


@settings
class Uniform(Budget):
    """Each layer gives the same share: p_l = p."""

    name = "uniform"
    summary = "each layer gives the same share"
    of_masks = True
    of_rounds = True
