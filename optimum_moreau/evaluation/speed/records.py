"""What was measured of a model's speed and size, beside its base, and the law by which the two are compared.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...files import filled, read_json, write_json
from . import words

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
# unit → what a gain, a loss and neither are called
_VERDICTS = {"bytes": ("smaller", "larger", "no difference")}
_SPEED_VERDICTS = ("faster", "slower", "no speed-up")


@dataclass(frozen=True)
class Spread:
    """Of one figure over the rounds.

    Attributes:
        median: of the rounds' values.
        low: the lowest of them.
        high: the highest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value a round."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Series:
    """One figure of one model, measured in every round.

    Attributes:
        metric: a key of `UNITS`.
        batch_size: sequences at once; `None` for what depends on none.
        values: one a round, in the metric's unit.
    """

    metric: str
    batch_size: int | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        name: Hub id, or name of its folder.
        parameters: tied ones counted once.
        bytes_on_disk: of the weights' files.
        hidden_size: channels of the residual stream.
        attention_widths: heads × head width, layer by layer.
        mlp_channels: layer by layer.
        series: what was measured.
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
    """One figure of the two models, compared.

    Attributes:
        metric: a key of `UNITS`.
        unit: of the figures.
        batch_size: sequences at once; `None` for what depends on none.
        model: of the pruned model.
        baseline: of its base; `None` where there is none.
        ratio: above 1 where the pruned model is better; `None` without a base.
        verdict: `faster`, `slower`, `no speed-up`; of bytes `smaller`, `larger`, `no difference`; empty without a base.
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
        return words.cells(self)


@dataclass(frozen=True)
class Speed:
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
        model = _values(self.model, self.rounds)
        base = {} if self.baseline is None else _values(self.baseline, self.rounds)
        return tuple(
            _row(metric, batch, values, base.get((metric, batch))) for (metric, batch), values in model.items()
        )

    @property
    def verdict(self) -> str:
        """What is faster on this device and what is not, in one sentence; empty without a base."""
        return words.verdict(self)

    @property
    def how(self) -> str:
        """How it was measured, in one sentence."""
        return words.how(self)

    @property
    def shape_notes(self) -> tuple[str, ...]:
        """What the shapes of the layers have to do with it."""
        return words.shape_notes(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as a dictionary that JSON can hold."""
        return asdict(self)

    def _problem(self) -> str:
        """What makes it none that can be; empty if nothing does."""
        if self.rounds < 1:
            return f"rounds: {self.rounds} is less than 1"
        for side in filter(None, (self.model, self.baseline)):
            if side.bytes_on_disk < 1 or not (side.attention_widths and side.mlp_channels):
                return f"{side.name}: has no bytes on disk, or no layers"
            for one in side.series:
                if one.metric not in UNITS or len(one.values) != self.rounds or min(one.values, default=0) <= 0:
                    return f"{one.metric}: {len(one.values)} values, {self.rounds} positive ones expected"
        if self.baseline and [_key(one) for one in self.model.series] != [_key(one) for one in self.baseline.series]:
            return "the two models were not measured alike"
        return ""

    def save(self, path: str | Path) -> None:
        """Writes it as JSON."""
        write_json(path, self.to_dict(), indent=1)

    @classmethod
    def load(cls, path: str | Path) -> Speed:
        """Reads it.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        what = "a benchmark"
        found = filled(cls, read_json(path, what), path, what)
        if problem := found._problem():
            raise CheckpointError(f"{path}: cannot be read as {what}: {problem}; remove it, and measure again")
        return found


def _key(one: Series) -> tuple[str, int | None]:
    return one.metric, one.batch_size


def _values(side: Side, rounds: int) -> dict[tuple[str, int | None], tuple[float, ...]]:
    """Metric and batch size → one value a round, in the order of the rows."""
    found = {_key(one): one.values for one in side.series}
    found["size on disk", None] = (float(side.bytes_on_disk),) * rounds
    order = list(UNITS)
    return dict(sorted(found.items(), key=lambda pair: (order.index(pair[0][0]), pair[0][1] or 0)))


def _row(metric: str, batch: int | None, model: Sequence[float], base: Sequence[float] | None) -> Row:
    unit = UNITS[metric]
    if base is None:
        return Row(metric, unit, batch, Spread.of(model))
    more_is_better = unit == "tokens/s"
    ratios = [m / b if more_is_better else b / m for m, b in zip(model, base, strict=True)]
    gain, loss, neither = _VERDICTS.get(unit, _SPEED_VERDICTS)
    printed = [round(ratio, 2) for ratio in ratios]
    verdict = gain if min(printed) > 1 else loss if max(printed) < 1 else neither
    return Row(metric, unit, batch, Spread.of(model), Spread.of(base), Spread.of(ratios), verdict)
