"""What was found out about a model, for the paper's figures: records that a report can draw.

`study.py` finds it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from ..errors import MoreauError
from ..files import Record
from ..planning import PruningPlan

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
    """Perplexity over one quantity.

    Attributes:
        title: what is shown.
        x_label: the quantity, with its unit.
        curves: one for each criterion.
        dense: perplexity of the unpruned model.
        current: the setting that the other panels are made with, if the quantity is one.
        logarithmic: whether the abscissa is.
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
