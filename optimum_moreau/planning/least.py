"""Sizes that are less than any unit: refused before anything is scored, as far as shape and counts tell.

Where every layer gives the same share, the counts are known. Where the budget follows the scores, a block gives at most
the whole goal g, and the number nearest to it: that is 0, whatever the scores, if g is at most half of the fewest units
that can go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..config import MoreauPrunerConfig
from ..errors import PlanError
from ..models.units import ModelShape
from .budget import expected_plan
from .pruning_plan import removed_parameters
from .runtimes import LegalCounts

_HALVINGS = 10  # of the interval in which the least size lies: to a thousandth of it


@dataclass(frozen=True)
class Least:
    """The smallest size of which an even spread removes anything.

    Attributes:
        size: value of the field that gives it; of several shares, in the proportion that was asked for.
        parameters: that go.
    """

    size: float | tuple[float, ...]
    parameters: int


def removes_nothing(shape: ModelShape, config: MoreauPrunerConfig) -> bool:
    """Whether a size, counted on `shape`, will remove nothing whatever the scores; `False` too where these decide.

    Raises:
        PlanError: the size cannot be reached.
    """
    if config.pruning_ratio is None and config.unit_ratio is None:
        return False  # a size to stay below: as much as it takes goes
    if removed_parameters(expected_plan(shape, config), shape):
        return False
    layers = {block.unit_parameters for block in shape.in_scope(config, "layers")}
    if config.budget.name == "uniform" and len(layers) <= 1:
        return True
    return all(goal <= fewest / 2 for goal, fewest in _goals(shape, config))


def least_size(shape: ModelShape, config: MoreauPrunerConfig) -> Least | None:
    """The smallest size, counted on `shape`, of which an even spread removes anything, where less was asked for.

    The config has a share of the parameters or of the units; `None` where none is in reach, or its own is no smaller.
    """
    name = "unit_ratio" if config.pruning_ratio is None else "pruning_ratio"
    given = getattr(config, name)
    most = 0.99 / (max(given) if isinstance(given, tuple) else given)

    def removed(factor: float) -> int | None:
        try:
            asked: dict[str, Any] = {name: _scaled(given, factor)}
            return removed_parameters(expected_plan(shape, replace(config, **asked)), shape)
        except PlanError:  # beyond reach
            return None

    if removed(1.0) != 0:
        return None
    low, high = 1.0, min(2.0, most)
    while removed(high) == 0:
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if removed(middle) == 0 else (low, middle)
    found = removed(high)
    return Least(_scaled(given, high), found) if found else None


def _scaled(given: float | tuple[float, ...], factor: float) -> float | tuple[float, ...]:
    return tuple(factor * share for share in given) if isinstance(given, tuple) else factor * given


def _goals(shape: ModelShape, config: MoreauPrunerConfig) -> Iterator[tuple[float, int]]:
    """Yields what is asked for of each block and the fewest that it can give: parameters, or units of its kind."""
    legal, scope = LegalCounts.of(shape, config), shape.in_scope(config)
    for block in scope:
        counts = range(2) if block.kind == "layers" else legal.removable(block)
        fewest = min((count for count in counts if count), default=block.total)
        if config.pruning_ratio is not None:
            yield config.pruning_ratio * shape.parameters, fewest * block.unit_parameters
        elif block.kind in ("attention", "mlp"):  # of the others the expected plan has as many as any
            total = sum(other.total for other in scope if other.kind == block.kind)
            yield config.unit_ratios[block.kind] * total, fewest
