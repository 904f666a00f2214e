"""No compensation."""

from __future__ import annotations

from ..config.settings import settings
from .step import Compensation


@settings
class NoCompensation(Compensation):
    """What stays is left as it is."""

    name = "none"
    summary = "what stays is left as it is"
    fits = False
