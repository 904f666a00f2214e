"""`MoreauPrunerConfig`: what to prune and how, as one frozen value that round-trips through JSON and the Hub."""

from .file import CONFIG_NAME
from .methods import Mask
from .presets import MEASURED, PRESETS
from .pruner_config import MoreauPrunerConfig, ResolvedConfig, config_meant
from .validation import SIZES, TARGETS

__all__ = [
    "MEASURED",
    "CONFIG_NAME",
    "PRESETS",
    "SIZES",
    "TARGETS",
    "Mask",
    "MoreauPrunerConfig",
    "ResolvedConfig",
    "config_meant",
]
