"""Unit scores + targets → how many units, and which, each target gives up.

Whole layers, hidden channels, and units (heads and MLP channels) are three ways to the same number of parameters. Where
several are targets, each gives an equal part of it, the coarsest first; the next take up what rounding left. A ratio of
units is applied to each target by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from ..budgets import Uniform, protects
from ..budgets.exact import cost_of, nearest_of
from ..config import SIZES, TARGETS, MoreauPrunerConfig
from ..config.quantities import nearest_fewer
from ..errors import PlanError
from ..models.units import Block, ModelShape
from ..scoring.scores import Ranking, UnitScores, check_covers, with_layer_sums
from .counts import Counts, UnitCounts, removal_order
from .explain import NEAR, adjustments
from .pruning_plan import Kept, PruningPlan, contributions, remaining
from .runtimes import LegalCounts, check_before_scoring, check_derived

WAYS = ("layers", "hidden", "units")  # coarsest first


@dataclass(frozen=True)
class Choice:
    """What goes.

    Attributes:
        layers: indices of whole layers.
        hidden: number of hidden channels.
        units: of each block of heads or channels that is cut.
    """

    layers: tuple[int, ...] = ()
    hidden: int = 0
    units: Counts = field(default_factory=dict)

    def and_then(self, found: Choice) -> Choice:
        """What goes with what the later ways give."""
        return Choice(self.layers or found.layers, self.hidden or found.hidden, found.units)


# One thing a way can give: the parameters removed, and what goes.
_Option = tuple[int, Choice]


class _Unreachable(Exception):
    """A part of the goal is more than what is left can give."""


def make_plan(
    scores: UnitScores, shape: ModelShape, config: MoreauPrunerConfig, *, counted: ModelShape | None = None
) -> PruningPlan:
    """Decides which units stay.

    Args:
        scores: of every unit in scope.
        shape: the model's shape.
        config: a resolved config.
        counted: the shape that the size is counted on, where biases will come with the compensation; default: `shape`.

    Returns:
        A plan that records where the scores come from, and this config.

    Raises:
        PlanError: the requested size cannot be reached, with the reachable range; scores, or what the budget measures,
            are missing; what is protected must go; or the runtime would read what stays otherwise.
        UnsupportedModelError: the family's hidden channels cannot be cut.
    """
    plan = _planned(scores, counted or shape, config)
    check_derived(counted or shape, plan, config)
    return plan if counted is None else replace(plan, contributions=contributions(plan, shape))


def _planned(scores: UnitScores, shape: ModelShape, config: MoreauPrunerConfig) -> PruningPlan:
    scores = with_layer_sums(scores, shape, config)
    check_covers(scores, shape.in_scope(config))
    budget = _Budget(shape, scores.values, config)
    choice = budget.by_unit_ratio() if config.unit_ratio is not None else budget.by_size()
    counts = {block.where: count for block, count in choice.units.items()}
    layers = _by_layer(shape, lambda block: _unprotected(block, scores.values, counts.get(block.where, 0), config))
    plan = PruningPlan(
        shape.family.model_type,
        layers,
        hidden=_kept(scores.values["hidden"], choice.hidden) if shape.hidden and choice.hidden else None,
        kept_layers=tuple(i for i in layers if i not in choice.layers) if choice.layers else None,
        **{**scores.origin, "config": config.to_dict()},
    )
    rest = remaining(plan, shape)
    LegalCounts.of(rest, config).check({block: len(plan.kept(block).kept) for block in rest.blocks})
    return replace(plan, contributions=contributions(plan, shape), adjustments=adjustments(plan, shape, config))


def expected_plan(shape: ModelShape, config: MoreauPrunerConfig) -> PruningPlan:
    """The plan as far as it is known before anything is scored: how many units go, not which.

    With a budget other than `uniform` the counts of each layer follow what is measured; here they are spread evenly.
    Which units are outliers is not known either.

    Raises:
        PlanError: the requested size cannot be reached, or a runtime might read otherwise what stays in the end.
        UnsupportedModelError: the family's hidden channels cannot be cut.
    """
    spread = replace(config.budget, protect_outliers=None) if isinstance(config.budget, Uniform) else Uniform()
    config = replace(config, budget=spread)
    blank = UnitScores(
        {block.where: torch.zeros(block.total, dtype=torch.float32, device="cpu") for block in shape.in_scope(config)}
    )
    plan = _planned(blank, shape, config)
    check_before_scoring(shape, plan, config)
    check_derived(shape, plan, config)
    return plan


def whole_plan(shape: ModelShape) -> PruningPlan:
    """The plan that keeps everything."""
    return PruningPlan(shape.family.model_type, _by_layer(shape, lambda block: Kept.whole(block.total)))


def _by_layer(shape: ModelShape, kept: Callable[[Block], Kept]) -> dict[int, dict[str, Kept]]:
    layers: dict[int, dict[str, Kept]] = {}
    for block in shape.blocks:
        assert block.layer is not None  # heads and channels lie in a layer
        layers.setdefault(block.layer, {})[block.kind] = kept(block)
    return layers


def _kept(score: Tensor, removed: int) -> Kept:
    order = torch.argsort(score, stable=True)  # equal scores: the lower index goes first
    return Kept(tuple(sorted(order[removed:].tolist())), len(score))


def _unprotected(block: Block, ranking: Ranking, removed: int, config: MoreauPrunerConfig) -> Kept:
    """What stays of heads or channels, of which some may be protected."""
    if not removed:
        return Kept.whole(block.total)
    if not protects(config.budget):
        return _kept(ranking[block.where], removed)
    order, stay = removal_order(block, ranking, config)
    if removed > len(order):
        budget = config.budget
        lowest, least = f"protect {budget.protect:g}", f"keeps the lowest {len(stay)} of {block.total} channels"
        if budget.protect_outliers is not None:
            lowest = f"protect_outliers {budget.protect_outliers:g}" + (f" with {lowest}" if budget.protect else "")
            least = f"keeps {len(stay)} of {block.total} units"
        raise PlanError(
            f"{block.where}: {lowest} {least}, so that {len(order)} can go at most, but {removed} must go; protect"
            " fewer, or remove less"
        )
    return Kept(tuple(sorted([*order[removed:], *stay])), block.total)


class _Budget:
    """Spreads a goal over the targets of one request."""

    def __init__(self, shape: ModelShape, ranking: Ranking, config: MoreauPrunerConfig):
        self.shape, self.ranking, self.config = shape, ranking, config
        layers = shape.in_scope(config, "layers")
        candidates = sorted(layers, key=lambda block: float(ranking[block.where]))  # least important first, stable
        self.candidates = candidates[: shape.depth - 1]  # one layer stays
        self.units = {block.where for block in shape.in_scope(config, "attention", "mlp")}
        self.ways = [way for way in WAYS if way in config.targets or (way == "units" and self.units)]

    def by_unit_ratio(self) -> Choice:
        """Each target gives its own share of its units."""
        share = dict.fromkeys(TARGETS, 0.0) | self.config.unit_ratios
        gone = self.candidates[: nearest_fewer(len(self.candidates) * share["layers"])]
        layers = tuple(sorted(block.layer for block in gone if block.layer is not None))
        rest = self.shape.without_layers(layers)
        hidden = 0
        if rest.hidden and share["hidden"]:
            hidden = nearest_of(self._legal(rest).removable(rest.hidden), rest.hidden.total * share["hidden"])
        counts = self._unit_counts(rest.narrowed(hidden))
        return Choice(layers, hidden, counts.by_share(share["attention"], share["mlp"]))

    def by_size(self) -> Choice:
        """All targets together give the parameters asked for; of a size to stay below, at least those.

        Raises:
            PlanError: they cannot; says what they can.
        """
        goal, at_least = self._goal()
        choice = self._reach(goal, at_least=at_least)
        extra = 0.0
        while at_least and (missing := goal - (self.shape.parameters - self._left(choice))) > 0:
            extra = max(2 * extra, missing)  # rounding of units fell short: ask for more, until no more is there
            choice = self._reach(goal + extra, at_least=True)
        return choice if at_least else self._nearest(choice, goal)

    def _goal(self) -> tuple[float, bool]:
        c, parameters = self.config, self.shape.parameters
        if c.pruning_ratio is not None:
            return c.pruning_ratio * parameters, False
        unit, whole = ("bytes", self.shape.bytes) if c.target_parameters is None else ("parameters", parameters)
        asked = getattr(c, f"target_{unit}")
        left = asked * parameters / whole
        if left >= parameters:
            raise PlanError(f"target_{unit} {asked:,} leaves nothing to prune: the model has {whole:,} {unit}")
        return parameters - left, True

    def _reach(self, goal: float, *, at_least: bool) -> Choice:
        # within half a step beyond the most counts as reached, but only where nothing else reaches the goal
        for rounding in (False,) if at_least else (False, True):
            try:
                return self._spread(self.shape, goal, self.ways, at_least=at_least, rounding=rounding)
            except _Unreachable:
                continue
        raise PlanError(self._refusal())

    def _nearest(self, choice: Choice, goal: float) -> Choice:
        """The choice, or, where it is far from the goal, the first that is near, or the nearest, of all."""
        missed, enough = abs(goal - (self.shape.parameters - self._left(choice))), NEAR * self.shape.parameters
        if missed <= enough:
            return choice
        for removed, other in self._all(self.shape, goal, self.ways, missed):
            if abs(goal - removed) < missed:
                choice, missed = other, abs(goal - removed)
            if missed <= enough:
                break
        return choice

    def _all(self, shape: ModelShape, goal: float, ways: Sequence[str], within: float) -> Iterator[tuple[int, Choice]]:
        """Yields what the ways can give together within so many parameters of the goal, the most equal parts first."""
        way, later = ways[0], ways[1:]
        if way == "units":
            for counts in self._unit_counts(shape).near(goal):
                yield cost_of(counts), Choice(units=counts)
            return
        for gone, choice in self._nearest_first(self._options(shape, way), goal / len(ways)):
            rest = self._after(shape, choice)
            most = gone + (self._most(rest, later) if later else 0)
            if gone - goal > within or goal - most > within:
                continue
            if not later:
                yield gone, choice
                continue
            for removed, found in self._all(rest, goal - gone, later, within):
                yield gone + removed, choice.and_then(found)

    def _spread(self, shape: ModelShape, goal: float, ways: Sequence[str], *, at_least: bool, rounding: bool) -> Choice:
        """Gives the first way its equal part as nearly as the later ones can make up for, and the rest to those."""
        way, later = ways[0], ways[1:]
        if way == "units":
            counts = self._unit_counts(shape)
            if goal > counts.most + (counts.slack if rounding else 0):
                raise _Unreachable
            return Choice(units=counts.by_parameters(goal))
        options = self._options(shape, way)
        if not later:
            most, second = options[-1][0], options[max(len(options) - 2, 0)][0]
            if goal > most + ((most - second) / 2 if rounding else 0):
                raise _Unreachable
            enough = [option for option in options if option[0] >= goal] if at_least else options
            return self._nearest_first(enough, goal)[0][1]
        for gone, choice in self._nearest_first(options, goal / len(ways)):
            rest = self._after(shape, choice)
            if not rounding and goal - gone > self._most(rest, later):
                continue
            try:
                return choice.and_then(self._spread(rest, goal - gone, later, at_least=at_least, rounding=rounding))
            except _Unreachable:
                continue
        raise _Unreachable

    @staticmethod
    def _nearest_first(options: Sequence[_Option], goal: float) -> list[_Option]:
        return sorted(options, key=lambda option: (abs(option[0] - goal), option[0]))

    def _most(self, shape: ModelShape, ways: Sequence[str]) -> int:
        """The most parameters that some ways can give together."""
        rest = shape
        for way in ways:
            if way != "units":
                rest = self._after(rest, self._options(rest, way)[-1][1])
        return shape.parameters - rest.parameters + self._unit_counts(rest).most

    def _options(self, shape: ModelShape, way: str) -> list[_Option]:
        """What a way can give, ascending."""
        if way == "layers":
            sizes = list(accumulate((whole.unit_parameters for whole in self.candidates), initial=0))
            layers = [whole.layer for whole in self.candidates if whole.layer is not None]
            return [(size, Choice(layers=tuple(sorted(layers[:n])))) for n, size in enumerate(sizes)]
        assert shape.hidden is not None  # in scope
        counts = sorted({0, *self._legal(shape).removable(shape.hidden)})
        return [(n * shape.hidden.unit_parameters, Choice(hidden=n)) for n in counts]

    def _legal(self, shape: ModelShape) -> LegalCounts:
        return LegalCounts.of(shape, self.config)

    def _unit_counts(self, shape: ModelShape) -> UnitCounts:
        blocks = [block for block in shape.blocks if block.where in self.units]
        return UnitCounts(blocks, self.ranking, self.config, self._legal(shape))

    def _after(self, shape: ModelShape, choice: Choice) -> ModelShape:
        return shape.without_layers(choice.layers).narrowed(choice.hidden)

    def _left(self, choice: Choice) -> int:
        return self._after(self.shape, choice).parameters - cost_of(choice.units)

    def _refusal(self) -> str:
        """Says how far the scope reaches."""
        least = self.shape.parameters - self._most(self.shape, self.ways)
        name = next(name for name in SIZES if getattr(self.config, name) is not None)
        widen = "widen attention_layers, mlp_layers, whole_layers or targets"
        if name == "pruning_ratio":
            most = math.floor(1e4 * (1 - least / self.shape.parameters)) / 1e4
            reach = f"cannot be reached in this scope, which reaches from 0 to {most:.4f}"
            return f"{name} {self.config.pruning_ratio:g} {reach}; {widen}"
        if name == "target_bytes":
            least = math.ceil(least * self.shape.bytes / self.shape.parameters)
        return f"{name} {getattr(self.config, name):,} cannot be reached in this scope, which leaves {least:,}; {widen}"
