"""What survives a cut is adjusted, without training, to give what the whole gave; and cuts made in rounds."""

from .biases import make_counted_plan, shape_to_count
from .compensate import Adjusted, CompensationRecord, check_compensation, compensated, described
from .rounds import rounds, without_removed

__all__ = [
    "Adjusted",
    "CompensationRecord",
    "check_compensation",
    "compensated",
    "described",
    "make_counted_plan",
    "rounds",
    "shape_to_count",
    "without_removed",
]
