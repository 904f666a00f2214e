"""`MoreauPrunerConfig`: what to prune and how, as one frozen value that round-trips through JSON and the Hub."""

from .presets import BEST, PRESETS
from .pruner_config import CONFIG_NAME, SIZES, MoreauPrunerConfig
from .validation import CHOICES, TARGETS

__all__ = ["BEST", "CHOICES", "CONFIG_NAME", "PRESETS", "SIZES", "TARGETS", "MoreauPrunerConfig"]
