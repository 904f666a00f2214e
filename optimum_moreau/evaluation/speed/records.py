"""What was measured of a model's speed and size, beside its base, by which law the two are compared, and in words.

Every round measures both models, one process after the other, in the order A B, B A, A B, …: what changes slowly on a
machine meets both. In each round the two give one ratio, above 1 where the pruned model is better:

    ratio_r = pruned_r / base_r     of tokens/s
    ratio_r = base_r / pruned_r     of times and bytes

The ratio of a row is the median over the rounds. It is a gain if it is above 1 in every round, a loss if below 1 in
every round, and no difference otherwise: a sign test over n rounds, by which a model that is as fast as its base seems
faster once in 2ⁿ rows (1 in 32 of 5 rounds, 1 in 8 of 3). What two decimals print as 1.00 counts as 1.

Peak memory is what is allocated on the GPU; on a CPU, what is resident beyond Python and its libraries. Load time is
that of a model whose files the system holds in memory already.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...config.quantities import words_for_bytes
from ...files import Record

SPEED_NAME = "benchmark.json"
# metric → its unit; rows come in this order
UNITS = {
    "prefill": "tokens/s",
    "decode": "tokens/s",
    "time to first token": "ms",
    "load time": "s",
    "peak memory": "bytes",
    "size on disk": "bytes",
}
# what a gain, a loss and neither are called, of speed and of bytes
_VERDICTS = (("faster", "slower", "no speed-up"), ("smaller", "larger", "no difference"))
_TILE = 64  # 128 bytes in 16 bits: what NVIDIA's guide to matrix products asks of a width for full speed
_LEAST_TILE = 8  # 16 bytes: below it, older tensor cores are not used at all
_Key = tuple[str, int | None]  # metric and batch size


@dataclass(frozen=True)
class Spread:
    """Of one figure over the rounds: the median of their values, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value a round."""
        return cls(statistics.median(values), min(values), max(values))

    def words(self, unit: str) -> str:
        """`1,234 (1,200 – 1,260)`; the median alone where the bounds would be printed alike."""
        median, low, high = (_number(value, unit) for value in (self.median, self.low, self.high))
        return median if low == high else f"{median} ({low} – {high})"


@dataclass(frozen=True)
class Series:
    """One figure of one model: a metric of `UNITS`, sequences at once (or none), and a value a round in its unit."""

    metric: str
    batch_size: int | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Side:
    """One of the two models, by its Hub id or the name of its folder.

    Tied parameters are counted once; the widths are given layer by layer, of attention as heads × head width.
    """

    name: str
    parameters: int
    bytes_on_disk: int
    hidden_size: int
    attention_widths: tuple[int, ...]
    mlp_channels: tuple[int, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Row:
    """One figure of the two models, compared; without a base there is no ratio, and the verdict is empty.

    The ratio is above 1 where the pruned model is better, and the verdict one of `_VERDICTS`.
    """

    metric: str
    unit: str
    batch_size: int | None
    model: Spread
    baseline: Spread | None = None
    ratio: Spread | None = None
    verdict: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str, str, str]:
        """For a reader: metric, batch, base, pruned, ratio, verdict."""
        metric = self.metric if self.unit == "bytes" else f"{self.metric}, {self.unit}"
        spreads = ((self.baseline, self.unit), (self.model, self.unit), (self.ratio, "×"))
        base, model, ratio = (spread.words(unit) if spread else "" for spread, unit in spreads)
        return metric, str(self.batch_size or ""), base, model, ratio, self.verdict


@dataclass(frozen=True)
class Speed(Record):
    """A benchmark of a model, alone or beside its base.

    Attributes:
        device: name of the GPU, or `cpu` with its architecture and number of threads.
        dtype: in which both computed.
        rounds: of both models, each in a fresh process.
        repeats: of every measurement in a process, the median of which is the round's value.
        prompt_tokens: of the prefill, per sequence.
        new_tokens: decoded after it, per sequence.
        model: what was measured of the model.
        baseline: of its base.
    """

    what: ClassVar[str] = "a benchmark"
    remedy: ClassVar[str] = "; remove it, and measure again"

    device: str
    dtype: str
    rounds: int
    repeats: int
    prompt_tokens: int
    new_tokens: int
    model: Side
    baseline: Side | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every figure: the spread over the rounds, and the comparison by the law above."""
        base = {} if self.baseline is None else self._values(self.baseline)
        return tuple(_row(*key, values, base.get(key)) for key, values in self._values(self.model).items())

    @property
    def verdict(self) -> str:
        """What is faster on this device and what is not, in one sentence; empty without a base.

        Of prefill and decode: the time to first token is the prefill's once more.
        """
        if self.baseline is None:
            return ""
        rows = [row for row in self.rows if row.metric in ("prefill", "decode")]
        faster, slower, neither = ([row for row in rows if row.verdict == kind] for kind in _VERDICTS[0])
        here = f"on this device ({self.device}): "
        said = [
            f"faster {here}{_by_metric(faster)}"
            if faster
            else f"no speed-up {here}{_by_metric(rows, batches=False)} in the median, but not above 1 in every round"
        ]
        said += [f"no speed-up on it: {_by_metric(neither)}"] if faster and neither else []
        return "; ".join([*said, *([f"slower: {_by_metric(slower)}"] if slower else [])])

    @property
    def how(self) -> str:
        """How it was measured, in one sentence."""
        rounds, runs = (
            f"{count} {noun}{'s' * (count != 1)}" for count, noun in ((self.rounds, "round"), (self.repeats, "run"))
        )
        said = (
            f"prompts of {self.prompt_tokens} tokens, {self.new_tokens} decoded after each, in {self.dtype}; median"
            f" (low – high) of {rounds}, each the median of {runs} in a fresh process"
        )
        compared = (
            ", the two models by turns; the ratio is the median of the rounds' own ratios, above 1 in favour of the"
            " pruned model, which is called faster or smaller only where every round says so (chance alone: one row in"
            f" {2**self.rounds})"
        )
        return said if self.baseline is None else said + compared

    @property
    def shape_notes(self) -> tuple[str, ...]:
        """How many widths are no multiples of a tile, and what that costs; only what holds of these shapes."""
        model, base = self.model, self.baseline
        sides = [model, *([] if base is None else [base])]
        channels = _odd("MLP channels", [side.mlp_channels for side in sides])
        width = _odd("attention width (heads × head width)", [side.attention_widths for side in sides])
        sizes = ", of the base ".join(str(side.hidden_size) for side in sides)
        hidden = f"hidden size {sizes}" if model.hidden_size % _TILE else ""
        notes = [f"all widths are multiples of {_TILE}: no tile of a matrix unit is computed in part"]
        if odd := [words for words in (channels, width, hidden) if words]:
            advice = f"; --multiple-of {_TILE} keeps MLP and hidden channels to whole ones"
            notes = [
                f"not a multiple of {_TILE}: {'; '.join(odd)}",
                f"the matrix units of GPUs compute in whole tiles of {_LEAST_TILE} to {_TILE} numbers and more: a tile"
                f" in part costs as much as a whole one{advice if channels or hidden else ''}",
            ]
        as_deep = base is not None and len(base.mlp_channels) == len(model.mlp_channels)
        if as_deep and any(row.metric == "decode" and row.verdict != "faster" for row in self.rows):
            notes.append(
                "it has as many layers as its base, so as many operations follow on one another for each token; where"
                " their number and not their size takes the time (a small model, a small batch), narrower layers are no"
                " faster, fewer ones are (--targets layers)"
            )
        return tuple(notes)

    def problem(self) -> str:
        """What makes it none that can be; empty if nothing does."""
        if self.rounds < 1:
            return f"rounds: {self.rounds} is less than 1"
        for side in filter(None, (self.model, self.baseline)):
            if side.bytes_on_disk < 1 or not (side.attention_widths and side.mlp_channels):
                return f"{side.name}: has no bytes on disk, or no layers"
            for one in side.series:
                if one.metric not in UNITS or len(one.values) != self.rounds or min(one.values) <= 0:
                    return f"{one.metric}: {len(one.values)} values, {self.rounds} positive ones expected"
        if self.baseline and list(self._values(self.model)) != list(self._values(self.baseline)):
            return "the two models were not measured alike"
        return ""

    def _values(self, side: Side) -> dict[_Key, tuple[float, ...]]:
        """Metric and batch size → one value a round, in the order of the rows."""
        found: dict[_Key, tuple[float, ...]] = {(one.metric, one.batch_size): one.values for one in side.series}
        found["size on disk", None] = (float(side.bytes_on_disk),) * self.rounds
        order = list(UNITS)
        return dict(sorted(found.items(), key=lambda pair: (order.index(pair[0][0]), pair[0][1] or 0)))


def _row(metric: str, batch: int | None, model: Sequence[float], base: Sequence[float] | None) -> Row:
    unit = UNITS[metric]
    if base is None:
        return Row(metric, unit, batch, Spread.of(model))
    ratios = [m / b if unit == "tokens/s" else b / m for m, b in zip(model, base, strict=True)]
    printed = [round(ratio, 2) for ratio in ratios]
    gain, loss, neither = _VERDICTS[unit == "bytes"]
    verdict = gain if min(printed) > 1 else loss if max(printed) < 1 else neither
    return Row(metric, unit, batch, Spread.of(model), Spread.of(base), Spread.of(ratios), verdict)


def _odd(what: str, widths: Sequence[Sequence[int]]) -> str:
    """How many of the model's widths are no multiples, and of its base's; empty where none of the model's is."""
    odd = [sum(width % _TILE > 0 for width in own) for own in widths]
    counts = (f"in {count} of {len(own)} layers" for count, own in zip(odd, widths, strict=True))
    return f"{what} {', of the base '.join(counts)}" if odd[0] else ""


def _by_metric(rows: Sequence[Row], *, batches: bool = True) -> str:
    """`decode 1.21 to 1.30 × at batch 1, 4, prefill …`."""
    found = []
    for metric in dict.fromkeys(row.metric for row in rows):
        ratios = [(row.ratio.median, row.batch_size) for row in rows if row.metric == metric and row.ratio]
        low, high = (f"{bound(ratio for ratio, _ in ratios):.2f}" for bound in (min, max))
        at = f" at batch {', '.join(str(batch) for _, batch in ratios)}" if batches else ""
        found.append(f"{metric} {low if low == high else f'{low} to {high}'} ×{at}")
    return ", ".join(found)


def _number(value: float, unit: str) -> str:
    if unit == "bytes":
        return words_for_bytes(value)
    digits = 2 if unit == "×" or value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"
