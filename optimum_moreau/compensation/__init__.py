"""What survives a cut is adjusted, without training, to give what the whole gave."""

from .compensate import Adjusted, compensated

__all__ = ["Adjusted", "compensated"]
