"""The config that a plan is applied with."""

from __future__ import annotations

from collections.abc import Callable

from ..config import MoreauPrunerConfig
from ..errors import PlanError
from ..planning import PruningPlan


def config_to_apply(
    plan: PruningPlan, otherwise: Callable[[], MoreauPrunerConfig], export: str | None
) -> MoreauPrunerConfig:
    """The config that a plan is applied with: its own, or another where it carries none.

    Args:
        plan: the plan.
        otherwise: gives the config where the plan carries no config (written by hand).
        export: `auto`, `stock` or `custom`, instead of the config's.

    Raises:
        PlanError: it is of a mask.
    """
    config = MoreauPrunerConfig.from_dict(plan.config) if plan.config else otherwise()
    if config.masks:
        raise PlanError(f"the plan is of a mask ({config.mask.pattern}), which it does not hold; prune the base again")
    return config if export is None else MoreauPrunerConfig.from_dict({**config.to_dict(), "export": export})
