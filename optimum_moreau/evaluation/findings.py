"""What robustness and insight found out about a model: records that a report can draw, and what agreement means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import stdev
from typing import Any, ClassVar, Self

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..errors import MoreauError
from ..files import Record
from ..planning import PruningPlan

ROBUSTNESS_NAME = "robustness.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INSIGHT_NAME = "insight.json"
FIGURES = {
    "ranking": "how two criteria rank the channels of each matrix (paper, Fig. 2, 5, 6)",
    "layers": "perplexity when a single layer is pruned (paper, Fig. 3)",
    "ratios": "perplexity over the pruning ratio (paper, Fig. 4a)",
    "sensitivity": "perplexity over η, ρ, σ and T (paper, Fig. 4b)",
    "map": "which units of which layer stay",
}
PERPLEXITIES = ("layers", "ratios", "sensitivity")  # of them need a text


@dataclass(frozen=True)
class Agreement:
    """How much two runs agree, a mean over the calibration seeds (or over pairs of them).

    Attributes:
        criterion: what scored.
        ratio: what was asked to be removed.
        between: the two, e.g. `("bf16", "fp16")`, or `("draw", "draw")` of one model.
        of: what the draws are of: the model as loaded, or `samples:N`; empty otherwise.
        kept: Jaccard overlap of the units that stay.
        kept_deviation: its standard deviation over the pairs.
        removed: of the units that go.
        removed_deviation: its standard deviation.
        rank: Spearman correlation of the scores, a mean over blocks, each weighted by its units.
        pairs: number of pairs.
        layers: block → `kept`, `removed`, `rank`.
        perplexity: of each of the two, a mean over seeds; empty if no text was given.
        difference: Diff of the paper's tables: the absolute difference of those.
        protocol: how they were measured.
    """

    criterion: str
    ratio: float
    between: tuple[str, str]
    of: str
    kept: float
    kept_deviation: float
    removed: float
    removed_deviation: float
    rank: float
    pairs: int
    layers: Mapping[str, Mapping[str, float]]
    perplexity: tuple[float, float] | None = None
    difference: float | None = None
    protocol: str = ""

    @property
    def is_draw(self) -> bool:
        """Whether two calibration draws are compared."""
        return self.between == ("draw", "draw")

    @property
    def words(self) -> str:
        """What is compared."""
        return f"two calibration draws ({self.of})" if self.is_draw else " – ".join(self.between)

    @property
    def cells(self) -> tuple[str, str, str]:
        """Overlaps of kept and removed units and rank correlation, for a reader; a deviation needs two pairs."""
        kept, removed = (f" ± {one:.3f}" * (self.pairs > 1) for one in (self.kept_deviation, self.removed_deviation))
        return f"{self.kept:.3f}{kept}", f"{self.removed:.3f}{removed}", f"{self.rank:.3f}"

    @property
    def is_of_dtypes(self) -> bool:
        """Whether two dtypes are compared."""
        return set(self.between) <= set(DTYPES)


@dataclass(frozen=True)
class Robustness(Record):
    """What `robustness` found out about a model: how far its plans agree under small changes, and that in words."""

    what: ClassVar[str] = "what `robustness` wrote"

    model: str
    fingerprint: str
    agreements: tuple[Agreement, ...]
    verdicts: tuple[str, ...] = ()


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, of two tensors `(n,)`; 1 if neither tells its entries apart, 0 if only one does."""
    alike = [bool((scores == scores[0]).all()) for scores in (first, second)]
    if any(alike):
        return float(all(alike))
    return round(float(spearmanr(first.numpy(), second.numpy()).statistic), 12)  # the same ranks give 1


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; 0 of one value."""
    return stdev(values) if len(values) > 1 else 0.0


def verdicts(agreements: Sequence[Agreement]) -> list[str]:
    """Says of each criterion and ratio whether another dtype or another calibration draw changes more of the choice.

    The draws are those of the model as it was loaded. Two overlaps within the sum of their deviations are called alike.
    """
    found = []
    for criterion, ratio in dict.fromkeys((one.criterion, one.ratio) for one in agreements):
        own = [one for one in agreements if (one.criterion, one.ratio) == (criterion, ratio)]
        dtypes = min((one for one in own if one.is_of_dtypes), key=lambda one: one.removed, default=None)
        draws = next((one for one in own if one.is_draw and not one.of.startswith("samples:")), None)
        if dtypes is None or draws is None:
            continue
        few = " (one pair of draws only)" if draws.pairs == 1 else ""
        what = "calibration draw" if draws.removed < dtypes.removed else "dtype"
        says = f"the {what} threatens the choice more{few}"
        if dtypes.removed == draws.removed == 1:
            says = "neither changes the choice"
        elif abs(dtypes.removed - draws.removed) <= dtypes.removed_deviation + draws.removed_deviation:
            says = "neither threatens the choice clearly more"
        found.append(
            f"{criterion}, {100 * ratio:g} %: of the units removed, {' and '.join(dtypes.between)} share"
            f" {dtypes.removed:.2f}, two calibration draws {draws.removed:.2f}: {says}"
        )
    return found


@dataclass(frozen=True)
class ChannelRanks:
    """How two criteria rank the channels of one matrix, e.g. `layers.3.mlp.up_proj`; 1 is the least important.

    The ranks are by the first and by the second, with the first calibration draw; the correlation is Spearman's, of the
    two with one draw, a mean over the draws.
    """

    module: str
    criteria: tuple[str, str]
    ranks: tuple[tuple[int, ...], tuple[int, ...]]
    correlation: float


@dataclass(frozen=True)
class Curve:
    """One line of a figure: ascending abscissae, and at each the perplexity's mean and deviation over the seeds."""

    label: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Perplexity over one quantity, a curve for each criterion, beside the unpruned model's.

    `current` is the setting that the other panels are made with, if the quantity is one.
    """

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    dense: float
    current: float | None = None
    logarithmic: bool = False


@dataclass(frozen=True)
class Insight(Record):
    """What was found out about a model.

    Attributes:
        model: its name, without folders.
        fingerprint: of its weights, as in a plan.
        text: name of what the perplexity was measured on.
        protocol: how.
        seeds: calibration draws that every point is a mean over.
        ranking: of each matrix, in order.
        layers: perplexity when a single layer is pruned.
        ratios: perplexity over the pruning ratio.
        sensitivity: one panel for each setting.
        plans: criterion → which units stay, with the first calibration draw.
    """

    what: ClassVar[str] = "what `insight` wrote"

    model: str
    fingerprint: str = ""
    text: str = ""
    protocol: str = ""
    seeds: int = 1
    ranking: tuple[ChannelRanks, ...] = ()
    layers: Panel | None = None
    ratios: Panel | None = None
    sensitivity: tuple[Panel, ...] = ()
    plans: Mapping[str, PruningPlan] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as a dictionary that JSON can hold."""
        found = Record.to_dict(replace(self, plans={}))
        return found | {"plans": {name: plan.to_dict() for name, plan in self.plans.items()}}

    def problem(self) -> str:
        """What makes it none that can be drawn; empty if nothing does."""
        for one in self.ranking:
            if len(one.ranks[0]) != len(one.ranks[1]):
                return f"{one.module}: {len(one.ranks[0])} and {len(one.ranks[1])} ranks of one matrix"
        for panel in filter(None, (self.layers, self.ratios, *self.sensitivity)):
            for curve in panel.curves:
                if not len(curve.x) == len(curve.mean) == len(curve.deviation):
                    return f"{curve.label}: as many points as means and deviations are needed"
        return ""

    @classmethod
    def _made(cls, values: Any, where: object, error: type[MoreauError]) -> Self:
        plans = values.get("plans") if isinstance(values, Mapping) else None
        if not isinstance(plans, Mapping):
            raise error(f"{where}: cannot be read as {cls.what}: no field 'plans'")
        found = super()._made({**values, "plans": {}}, where, error)
        try:
            return replace(found, plans={name: PruningPlan.from_dict(plan) for name, plan in plans.items()})
        except MoreauError as problem:
            raise error(f"{where}: cannot be read as {cls.what}: {problem}") from problem
