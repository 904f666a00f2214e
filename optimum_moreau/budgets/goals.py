"""What a search is to reach, as far as it follows from the config and the model alone.

A size is one goal of all blocks; a share of the units is one of each kind. Where whole layers or hidden channels go
too, what is left to heads and channels is not known yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..config import MoreauPrunerConfig
from ..models.units import Block, ModelShape

NEAR = 0.01  # a goal that is so near, as a share, is the same one: rounding, or biases to come


@dataclass(frozen=True)
class Goal:
    """Parameters that some blocks give together.

    Attributes:
        name: `units`, or the kind.
        blocks: which.
        parameters: how many.
    """

    name: str
    blocks: tuple[Block, ...]
    parameters: float


def goals(blocks: Sequence[Block], shape: ModelShape, config: MoreauPrunerConfig) -> list[Goal]:
    """The goals of a resolved config; none where they are not known."""
    if not set(config.targets) <= {"attention", "mlp"}:
        return []
    if config.unit_ratio is not None:
        found = []
        for kind in ("attention", "mlp"):
            own = tuple(block for block in blocks if block.kind == kind)
            share = config.unit_ratios.get(kind, 0.0)
            found.append(Goal(kind, own, share * sum(block.total * block.unit_parameters for block in own)))
        return [goal for goal in found if goal.blocks]
    parameters = float(shape.parameters)
    if config.pruning_ratio is not None:
        size = config.pruning_ratio * parameters
    elif config.target_parameters is not None:
        size = parameters - config.target_parameters
    else:
        size = parameters - config.target_bytes * parameters / shape.bytes
    return [Goal("units", tuple(blocks), size)] if size > 0 else []


def legal_counts(block: Block, config: MoreauPrunerConfig) -> Sequence[int]:
    """How many units of a block may go, ascending: never all, and of channels a multiple stays."""
    most = block.total - 1
    if block.kind == "attention":
        return range(block.total)
    step = config.multiple_of
    some = [*range(block.total % step, block.total - step + 1, step)] if step <= block.total else []
    protected = int(round(block.total * config.budget.protect, 9))
    return [count for count in some if count <= most - protected] or some[:1] or [0]


def same(goal: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether goals by name are near to each other."""
    return goal.keys() == other.keys() and all(
        abs(goal[name] - other[name]) <= NEAR * max(abs(other[name]), 1.0) for name in goal
    )
