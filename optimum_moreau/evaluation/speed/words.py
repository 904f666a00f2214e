"""What the figures of a benchmark say, in words: a table's cells, the verdict, and why shapes matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...config.quantities import words_for_bytes

if TYPE_CHECKING:
    from .records import Row, Speed, Spread

_TILE = 64  # 128 bytes in 16 bits: what NVIDIA's guide to matrix products asks of a width for full speed
_BESIDE = ", of the base "
_LEAST_TILE = 8  # 16 bytes: below it, older tensor cores are not used at all


def cells(row: Row) -> tuple[str, str, str, str, str, str]:
    """Metric, batch, base, pruned, ratio, verdict."""
    metric = row.metric if row.unit == "bytes" else f"{row.metric}, {row.unit}"
    ratio = "" if row.ratio is None else _spread(row.ratio, "×")
    baseline = "" if row.baseline is None else _spread(row.baseline, row.unit)
    return metric, str(row.batch_size or ""), baseline, _spread(row.model, row.unit), ratio, row.verdict


def verdict(speed: Speed) -> str:
    """What is faster and what is not, of prefill and decode; the time to first token is the prefill's once more."""
    if speed.baseline is None:
        return ""
    rows = [row for row in speed.rows if row.metric in ("prefill", "decode")]
    kinds = {kind: [row for row in rows if row.verdict == kind] for kind in ("faster", "slower", "no speed-up")}
    if not kinds["faster"]:
        said = (
            f"no speed-up on this device ({speed.device}): {_by_metric(rows, batches=False)} in the median, but not"
            " above 1 in every round"
        )
        return said + (f"; slower: {_by_metric(kinds['slower'])}" if kinds["slower"] else "")
    parts = [f"faster on this device ({speed.device}): {_by_metric(kinds['faster'])}"]
    if kinds["no speed-up"]:
        parts.append(f"no speed-up on it: {_by_metric(kinds['no speed-up'])}")
    if kinds["slower"]:
        parts.append(f"slower: {_by_metric(kinds['slower'])}")
    return "; ".join(parts)


def how(speed: Speed) -> str:
    """How it was measured."""
    rounds, runs = _counted(speed.rounds, "round"), _counted(speed.repeats, "run")
    said = (
        f"prompts of {speed.prompt_tokens} tokens, {speed.new_tokens} decoded after each, in {speed.dtype}; median"
        f" (low – high) of {rounds}, each the median of {runs} in a fresh process"
    )
    if speed.baseline is None:
        return said
    return (
        f"{said}, the two models by turns; the ratio is the median of the rounds' own ratios, above 1 in favour of the"
        f" pruned model, which is called faster or smaller only where every round says so (chance alone: one row in"
        f" {2**speed.rounds})"
    )


def shape_notes(speed: Speed) -> tuple[str, ...]:
    """How many widths of the model are no multiples of a tile, and what that costs; only what holds of these shapes."""
    model, base = speed.model, speed.baseline
    notes = []
    sides = [model, *([] if base is None else [base])]
    channels = _odd("MLP channels", [side.mlp_channels for side in sides])
    width = _odd("attention width (heads × head width)", [side.attention_widths for side in sides])
    sizes = [f"hidden size {model.hidden_size}", *(str(side.hidden_size) for side in sides[1:])]
    hidden = _BESIDE.join(sizes) if model.hidden_size % _TILE else ""
    if channels or width or hidden:
        notes.append(f"not a multiple of {_TILE}: {'; '.join(filter(None, (channels, width, hidden)))}")
        advice = f"; --multiple-of {_TILE} keeps MLP and hidden channels to whole ones" if channels or hidden else ""
        notes.append(
            f"the matrix units of GPUs compute in whole tiles of {_LEAST_TILE} to {_TILE} numbers and more: a tile in"
            f" part costs as much as a whole one{advice}"
        )
    else:
        notes.append(f"all widths are multiples of {_TILE}: no tile of a matrix unit is computed in part")
    as_deep = base is not None and len(base.mlp_channels) == len(model.mlp_channels)
    if as_deep and any(row.metric == "decode" and row.verdict != "faster" for row in speed.rows):
        notes.append(
            "it has as many layers as its base, so as many operations follow on one another for each token; where their"
            " number and not their size takes the time (a small model, a small batch), narrower layers are no faster,"
            " fewer ones are (--targets layers)"
        )
    return tuple(notes)


def _odd(what: str, widths: Sequence[Sequence[int]]) -> str:
    """How many of the model's widths are no multiples, and how many of its base's; empty where none of the model's is.

    Args:
        what: the widths are of.
        widths: of the model's layers, and of its base's where there is one.
    """

    def counted(some: Sequence[int]) -> str:
        return f"in {sum(width % _TILE > 0 for width in some)} of {len(some)} layers"

    if not any(width % _TILE for width in widths[0]):
        return ""
    return _BESIDE.join([f"{what} {counted(widths[0])}", *map(counted, widths[1:])])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _by_metric(rows: Sequence[Row], *, batches: bool = True) -> str:
    """`decode 1.21 to 1.30 × at batch 1, 4, prefill …`."""
    found = []
    for metric in dict.fromkeys(row.metric for row in rows):
        ratios = [(row.ratio.median, row.batch_size) for row in rows if row.metric == metric and row.ratio]
        low, high = (f"{bound(ratio for ratio, _ in ratios):.2f}" for bound in (min, max))
        at = f" at batch {', '.join(str(batch) for _, batch in ratios)}" if batches else ""
        found.append(f"{metric} {low if low == high else f'{low} to {high}'} ×{at}")
    return ", ".join(found)


def _spread(found: Spread, unit: str) -> str:
    """`1,234 (1,200 – 1,260)`; the median alone where the bounds would be printed alike."""
    median, low, high = (_number(value, unit) for value in (found.median, found.low, found.high))
    return median if low == high else f"{median} ({low} – {high})"


def _number(value: float, unit: str) -> str:
    if unit == "bytes":
        return words_for_bytes(value)
    if unit == "×":
        return f"{value:.2f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
