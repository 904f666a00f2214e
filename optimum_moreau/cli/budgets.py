"""List the budgets; of one, its settings with their defaults."""

from ..registry import BUDGETS
from .methods import verb_of

EXAMPLE = "owl"
add_arguments, run, show = verb_of(BUDGETS)
