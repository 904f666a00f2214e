"""List the budgets; of one, its settings with their defaults."""

from ..registry import BUDGETS
from .criteria import verb_of

EXAMPLE = "owl"
add_arguments, run, show = verb_of(BUDGETS)
