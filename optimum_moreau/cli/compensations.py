"""List the compensations; of one, its settings with their defaults."""

from ..registry import COMPENSATIONS
from .criteria import verb_of

EXAMPLE = "refit"
add_arguments, run, show = verb_of(COMPENSATIONS)
