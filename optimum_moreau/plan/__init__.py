"""Plans: what stays of a model (`pruning_plan`), and how scores and targets decide it (`budget`)."""

from .budget import make_plan, removed_parameters, removed_unit_share
from .pruning_plan import PLAN_NAME, Kept, PruningPlan, fingerprint

__all__ = [
    "PLAN_NAME",
    "Kept",
    "PruningPlan",
    "fingerprint",
    "make_plan",
    "removed_parameters",
    "removed_unit_share",
]
