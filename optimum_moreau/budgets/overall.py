"""One ranking of all units, or of all weights of a mask, by their score per parameter."""

from __future__ import annotations

from ..config.settings import settings
from .budget import Budget


@settings
class Global(Budget):
    """One ranking of all units, or of all weights of a mask, by their score per parameter."""

    name = "global"
    summary = "one ranking of all units by their score per parameter"
    ranks = True
    of_masks = True
    of_rounds = True
