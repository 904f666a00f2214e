"""Sizes that remove nothing: refused by the commands, which would save the base again as if it were pruned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..config import SIZES, MoreauPrunerConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..models.units import ModelShape

_NOTHING = "removes nothing, and the result would be the base again"
_ANEW = "or, to only save a model anew, call its own save_pretrained in Python"


def check_removes(config: MoreauPrunerConfig) -> None:
    """Refuses (ConfigError), before anything is loaded, a share that is nothing; others wait for the model's shape."""
    if config.masks:
        if config.mask.sparsity == 0:
            raise ConfigError(f"sparsity 0: {_NOTHING}; give a share above 0, {_ANEW}")
        return
    shares = {"pruning_ratio 0 (--ratio)": config.pruning_ratio, "unit_ratio 0": config.unit_ratio}
    for words, share in shares.items():
        if share in (0, (0,) * len(config.targets)):
            raise ConfigError(f"{words}: {_NOTHING}; give a ratio above 0, {_ANEW}")


def check_shape(shape: ModelShape, config: MoreauPrunerConfig) -> None:
    """Refuses, before anything is scored, a size that is less than any unit whatever the scores, as `check_removed`."""
    from ..planning import removes_nothing

    if not config.masks and removes_nothing(shape, config):
        check_removed(0, shape, config)


def check_removed(parameters: int, shape: ModelShape, config: MoreauPrunerConfig) -> None:
    """Refuses a plan, or a result, that removes no parameter: by the scores, the size is less than any unit.

    Raises:
        ConfigError: no `parameters` go; says the smallest size that would do.
    """
    from ..planning import least_size

    if parameters:
        return

    name = next(size for size in SIZES if getattr(config, size) is not None)
    least = least_size(shape, config) if name.endswith("ratio") else None
    instead = "ask for more to go, or widen the scope"
    if least is not None:
        spread = "" if config.budget.name == "uniform" else " with an even spread over layers"
        share = f"{100 * least.parameters / shape.parameters:.2g} %"
        instead = (
            f"the least that can go{spread} is {share} of the parameters ({least.parameters:,}), from {name}"
            f" {_shown(least.size, up=True)} on: ask for that"
        )
    asked = _shown(getattr(config, name))
    raise ConfigError(f"{name} {asked} is less than any unit in scope: it {_NOTHING}; {instead}, {_ANEW}")


def _shown(size: float | tuple[float, ...], *, up: bool = False) -> str:
    """A share in four digits, rounded up where it must be reached."""
    if isinstance(size, tuple):
        return ",".join(_shown(one, up=up) for one in size)
    if not up or not size:
        return f"{size:g}"
    unit = 10.0 ** (math.floor(math.log10(size)) - 3)
    return f"{math.ceil(size / unit) * unit:.4g}"
