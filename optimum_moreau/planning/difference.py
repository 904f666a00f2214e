"""How much two plans for one model agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import PlanError
from .pruning_plan import Kept, PruningPlan


@dataclass(frozen=True)
class Overlap:
    """Jaccard overlap |A ∩ B| / |A ∪ B| of two sets of units; 1 where both are empty.

    Attributes:
        kept: of the units that stay.
        removed: of the units that go.
    """

    kept: float
    removed: float


def plan_overlap(first: PruningPlan, second: PruningPlan) -> dict[str, Overlap]:
    """Compares two plans for the same model.

    Returns:
        `layers.3.mlp` → overlap, for every block that either plan cuts, `hidden` and `layers` where either plan cuts
        those; `attention`, `mlp` and `all` for the model.

    Raises:
        PlanError: the plans are for different shapes; names the first mismatch.
    """
    if set(first.layers) != set(second.layers):
        raise PlanError(f"the plans have {len(first.layers)} and {len(second.layers)} layers")
    pairs: dict[str, tuple[Kept, Kept]] = {}
    for index, blocks in first.layers.items():
        for kind, kept in blocks.items():
            twin = second.layers[index].get(kind)
            if twin is None or twin.total != kept.total:
                found = f"{twin.total} units" if twin else "nothing"
                raise PlanError(f"layers.{index}.{kind}: {kept.total} units in one plan, {found} in the other")
            pairs[f"layers.{index}.{kind}"] = (kept, twin)
    if hidden := first.hidden or second.hidden:
        whole = Kept.whole(hidden.total)
        pairs["hidden"] = one, other = first.hidden or whole, second.hidden or whole
        if one.total != other.total:
            raise PlanError(f"hidden: {one.total} channels in one plan, {other.total} in the other")
    if first.kept_layers is not None or second.kept_layers is not None:
        every = tuple(first.layers)
        one, other = (Kept(plan.kept_layers or every, len(every)) for plan in (first, second))
        pairs["layers"] = one, other
    cut = {where: pair for where, pair in pairs.items() if any(kept.removed for kept in pair)}
    overlaps = {where: _overlap([pair]) for where, pair in cut.items()}
    for kind in ("attention", "mlp"):
        overlaps[kind] = _overlap(pair for where, pair in cut.items() if where.endswith(kind))
    overlaps["all"] = _overlap(cut.values())
    return overlaps


def _overlap(pairs: Iterable[tuple[Kept, Kept]]) -> Overlap:
    shared_kept = union_kept = shared_removed = union_removed = 0
    for first, second in pairs:
        a, b = set(first.kept), set(second.kept)
        shared_kept += len(a & b)
        union_kept += len(a | b)
        shared_removed += first.total - len(a | b)
        union_removed += first.total - len(a & b)
    pairs_of_sums = (shared_kept, union_kept), (shared_removed, union_removed)
    return Overlap(*(shared / union if union else 1.0 for shared, union in pairs_of_sums))
