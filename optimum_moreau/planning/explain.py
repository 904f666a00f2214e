"""What legal shapes made of a request, in words, for the plan and its reader."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import MoreauPrunerConfig
from ..models.units import ModelShape
from .pruning_plan import PruningPlan, contributions, remaining
from .runtimes import LegalCounts

NEAR = 0.01  # share of the parameters by which a request may be missed without a word
_NOUNS = {"layers": "layers", "attention": "KV groups", "mlp": "MLP channels", "hidden": "hidden channels"}


def adjustments(plan: PruningPlan, shape: ModelShape, config: MoreauPrunerConfig) -> tuple[str, ...]:
    """Returns one line for each rule that narrowed what could be kept, with what came of it."""
    return tuple(_lines(plan, shape, config))


def _lines(plan: PruningPlan, shape: ModelShape, config: MoreauPrunerConfig) -> Iterator[str]:
    if config.runtime != "transformers":
        yield f"every layer is in scope and keeps one shape, in a stock class: {config.runtime} reads no other"
    rest = remaining(plan, shape)
    for kind, shaped in (("hidden", shape), ("attention", rest), ("mlp", rest)):
        reason = LegalCounts.of(shaped, config).reason(kind)
        blocks = [block for block in shape.in_scope(config, kind) if block.layer not in plan.removed_layers]
        if reason and any(plan.kept(block).removed for block in blocks):
            counts = {len(plan.kept(block).kept) for block in blocks}, {block.total for block in blocks}
            yield f"{' of '.join(map(_range, counts))} {_NOUNS[kind]} stay: {reason}"
    given = contributions(plan, shape)
    ways = {"units" if kind in ("attention", "mlp") else kind for kind in config.targets}
    part = (config.pruning_ratio or 0.0) * shape.parameters / len(ways)  # that each way would give alike
    for kind in ("layers", "hidden"):
        if kind in config.targets and kind not in given and config.pruning_ratio != 0 and config.unit_ratio != 0:
            more = _fewest(kind, shape.without_layers(plan.removed_layers), config) > part
            why = "the fewest that can are more than their part" if more else "the request is met more nearly without"
            yield f"no {_NOUNS[kind]} go: {why}"
    achieved = sum(given.values()) / shape.parameters
    if config.pruning_ratio is not None and abs(achieved - config.pruning_ratio) > NEAR:
        nearest = ": the nearest that can be" if _is_nearest(shape, config) else ""
        yield f"{achieved:.1%} of the parameters go instead of {config.pruning_ratio:.1%}{nearest}"
    elif config.pruning_ratio and not given:
        yield f"nothing goes instead of {config.pruning_ratio:.2%} of the parameters; ask for more"


def _fewest(kind: str, shape: ModelShape, config: MoreauPrunerConfig) -> int:
    """The parameters that go with the fewest layers, or hidden channels, that can go."""
    if kind == "layers":
        return min((block.unit_parameters for block in shape.in_scope(config, kind)), default=0)
    assert shape.hidden is not None  # in scope
    counts = LegalCounts.of(shape, config).removable(shape.hidden)
    return min((count for count in counts if count), default=shape.hidden.total) * shape.hidden.unit_parameters


def _is_nearest(shape: ModelShape, config: MoreauPrunerConfig) -> bool:
    """Whether planning tried all there is: layers of one shape that give the same, protected or not."""
    scope = [block for block in shape.in_scope(config) if block.kind != "hidden"]
    alike = len({(block.kind, block.total, block.unit_parameters) for block in scope}) == len({b.kind for b in scope})
    return config.budget.name == "uniform" and config.rounds == 1 and alike


def _range(numbers: set[int]) -> str:
    """`8`, or over layers of different shape `6-8`."""
    return f"{min(numbers)}-{max(numbers)}" if len(numbers) > 1 else f"{min(numbers)}"
