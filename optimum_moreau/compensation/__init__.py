"""What survives a cut is adjusted, without training, to give what the whole gave; and cuts made in rounds."""

from .compensate import Adjusted, compensated, described
from .rounds import rounds, without_removed

__all__ = ["Adjusted", "compensated", "described", "rounds", "without_removed"]
