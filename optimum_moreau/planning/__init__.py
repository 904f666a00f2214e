"""Plans: what stays of a model (`pruning_plan`), how scores and targets decide it (`budget`), how two agree.

`spread` says which share of each layer goes, `counts` makes whole units of it, `engines` knows which counts are legal
and `derived` what an engine makes of them,
`explain` says what came of that, `gains` counts it, and `least` knows what is too little.
"""

from .budget import expected_plan, make_plan, whole_plan
from .derived import check_derived
from .difference import Overlap, plan_overlap
from .gains import contributions, removed_parameters, removed_unit_share
from .least import Least, least_size, removes_nothing
from .pruning_plan import PLAN_NAME, Kept, PruningPlan, fingerprint

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
