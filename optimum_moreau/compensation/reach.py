"""How far a cut reaches: which matrices a compensation adjusts."""

from __future__ import annotations

from ..models.units import Block, ModelShape
from ..planning import PruningPlan


def reached(shape: ModelShape, plan: PruningPlan) -> dict[int, list[Block]]:
    """Blocks of every layer that lose something, or hear what has changed before them; none of layers that go whole.

    Args:
        shape: of the base model.
        plan: what stays.

    Returns:
        Layer → its blocks, the attention before the MLP.
    """
    changed = plan.narrows
    found: dict[int, list[Block]] = {index: [] for index in range(shape.depth)}
    for index, own in found.items():
        if index in plan.removed_layers:
            changed = True
            continue
        for block in sorted((b for b in shape.blocks if b.layer == index), key=lambda block: block.kind):
            changed = changed or plan.kept(block).removed > 0
            if changed:
                own.append(block)
    return found
