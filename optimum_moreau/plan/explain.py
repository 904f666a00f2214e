"""What legal shapes made of a request, in words, for the plan and its reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..config import MoreauPrunerConfig
from ..units import Block, ModelShape
from .engines import LegalCounts
from .pruning_plan import PruningPlan

_NOUNS = {"attention": "KV groups", "mlp": "MLP channels", "hidden": "hidden channels"}


def adjustments(plan: PruningPlan, shape: ModelShape, config: MoreauPrunerConfig) -> tuple[str, ...]:
    """Returns one line for each rule that narrowed what could be kept, with what came of it."""
    return tuple(_lines(plan, shape, config))


def _lines(plan: PruningPlan, shape: ModelShape, config: MoreauPrunerConfig) -> Iterator[str]:
    if config.engine != "transformers":
        yield f"every layer is in scope and keeps one shape, in a stock class: {config.engine} reads no other"
    rest = shape.without_layers(plan.removed_layers).narrowed(plan.hidden.removed if plan.hidden else 0)
    for kind, shaped in (("hidden", shape), ("attention", rest), ("mlp", rest)):
        reason = LegalCounts.of(shaped, config).reason(kind)
        scope = [block for block in shape.in_scope(config) if block.layer not in plan.removed_layers]
        blocks = [block for block in scope if block.kind == kind]
        if reason and blocks:
            yield f"{_counts(plan, blocks)} {_NOUNS[kind]} stay: {reason}"


def _counts(plan: PruningPlan, blocks: Sequence[Block]) -> str:
    """`8 of 11`, or over layers of different shape `6-8 of 11`."""
    kept = {len(plan.kept(block).kept) for block in blocks}
    total = {block.total for block in blocks}
    words = [f"{min(numbers)}-{max(numbers)}" if len(numbers) > 1 else f"{min(numbers)}" for numbers in (kept, total)]
    return " of ".join(words)
