"""What a plan removes, counted exactly."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.units import Block, ModelShape
from .pruning_plan import PruningPlan


def remaining(plan: PruningPlan, shape: ModelShape) -> ModelShape:
    """The shape once the plan's layers and hidden channels are gone, its heads and MLP channels still whole."""
    return shape.without_layers(plan.removed_layers).narrowed(plan.hidden.removed if plan.hidden else 0)


def contributions(plan: PruningPlan, shape: ModelShape) -> dict[str, int]:
    """Returns exactly how many parameters each kind of unit gives: layers first, then hidden channels, then units."""
    rest, narrow = shape.without_layers(plan.removed_layers), remaining(plan, shape)
    given = {"layers": shape.parameters - rest.parameters}
    given["hidden"] = rest.parameters - narrow.parameters
    for kind in ("attention", "mlp"):
        given[kind] = sum(plan.kept(block).removed * block.unit_parameters for block in narrow.of(kind))
    return {kind: count for kind, count in given.items() if count}


def removed_parameters(plan: PruningPlan, shape: ModelShape) -> int:
    """Returns how many parameters a plan removes, exactly."""
    return sum(contributions(plan, shape).values())


def removed_unit_share(plan: PruningPlan, blocks: Sequence[Block]) -> dict[str, float]:
    """Returns the share of the units in scope that go, by kind; heads and channels of the layers that stay."""
    shares: dict[str, float] = {}
    for kind in dict.fromkeys(block.kind for block in blocks):
        gone = plan.removed_layers if kind in ("attention", "mlp") else ()
        kepts = [plan.kept(block) for block in blocks if block.kind == kind and block.layer not in gone]
        total = sum(kept.total for kept in kepts)
        shares[kind] = sum(kept.removed for kept in kepts) / total if total else 0.0
    return shares
