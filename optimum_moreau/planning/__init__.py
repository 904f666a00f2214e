"""Plans: what stays of a model (`pruning_plan`), how scores and targets decide it (`budget`), how two agree.

`counts` makes whole units of a share of each layer, `runtimes` knows which counts are legal and what a runtime makes
of them, `explain` says what came of that, and `least` knows what is too little.
"""

from .budget import expected_plan, make_plan, whole_plan
from .difference import Overlap, plan_overlap
from .least import Least, least_size, removes_nothing
from .pruning_plan import (
    PLAN_NAME,
    Kept,
    PruningPlan,
    contributions,
    fingerprint,
    removed_parameters,
    removed_unit_share,
)
from .runtimes import check_derived

__all__ = [
    "PLAN_NAME",
    "Kept",
    "Least",
    "Overlap",
    "PruningPlan",
    "check_derived",
    "contributions",
    "expected_plan",
    "fingerprint",
    "least_size",
    "make_plan",
    "plan_overlap",
    "removed_parameters",
    "removed_unit_share",
    "removes_nothing",
    "whole_plan",
]
