"""The config of a run: the one that a caller means, or the one that a plan carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..config import MoreauPrunerConfig
from ..errors import ConfigError, PlanError
from ..planning import PruningPlan


def config_meant(config: Any, settings: Mapping[str, Any]) -> MoreauPrunerConfig:
    """The config that is meant: one, a criterion's name, fields of one, or `None`; with settings over it.

    Raises:
        ConfigError: it is of another type, or a field of it is not valid.
    """
    if isinstance(config, MoreauPrunerConfig):
        return config.changed(**settings) if settings else config
    if isinstance(config, str):
        return MoreauPrunerConfig.best(**{"criterion": config, **settings})
    if config is None or isinstance(config, Mapping):
        given = {str(field): value for field, value in (config or {}).items()}
        return MoreauPrunerConfig.best(**{**given, **settings})
    raise ConfigError(
        f"MoreauPruner: {config!r:.40} is no config; pass a MoreauPrunerConfig, a criterion's name, or a dictionary of"
        " its fields"
    )


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
