"""What survives a cut is adjusted, without training, to give what the whole gave; and cuts made in rounds."""

from .compensate import Adjusted, check_compensation, compensated, described
from .rounds import rounds, without_removed

__all__ = ["Adjusted", "check_compensation", "compensated", "described", "rounds", "without_removed"]
