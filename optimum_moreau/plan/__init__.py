"""Plans: what stays of a model (`pruning_plan`), and how scores and targets decide it (`budget`), how two agree."""

from .budget import make_plan, removed_parameters, removed_unit_share
from .difference import Overlap, plan_overlap
from .pruning_plan import PLAN_NAME, Kept, PruningPlan, fingerprint

__all__ = [
    "PLAN_NAME",
    "Kept",
    "Overlap",
    "PruningPlan",
    "fingerprint",
    "make_plan",
    "plan_overlap",
    "removed_parameters",
    "removed_unit_share",
]
