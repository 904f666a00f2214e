"""Does the choice of units survive? Plans of one model under small changes of its weights and of the calibration draw.

MoreauPruner, Tables 1 and 8, ask it of bfloat16 against float16. Every model change is scored with every calibration
seed, once; all ratios are planned from those scores.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import MoreauPrunerConfig
from ..data.windows import load_calibration
from ..errors import ConfigError
from ..models.units import ModelShape, model_shape
from ..planning import PruningPlan, make_plan, plan_overlap
from ..scoring.profiles import PROFILES
from ..scoring.scores import UnitScores, needs_text, score_units
from ..surgery.apply import apply_plan, check_prunable
from .agreement import Agreement, rank_correlation
from .perplexity import perplexity
from .perturbation import BASE, DTYPES, Perturbation, parse_perturbations

logger = logging.getLogger(__name__)

# A run of one criterion: the name of its perturbation, and the seed of its calibration.
Run = tuple[str, int]
Pair = tuple[Run, Run]


@dataclass(frozen=True)
class _Given:
    """What `robustness` was given of the model and of texts; its arguments say what each is."""

    load: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase | None
    calibration: Any
    evaluate: Any
    max_segments: int | None


@dataclass
class _Runs:
    """What was scored: (criterion, perturbation, seed) → scores; and what was measured of it."""

    shape: ModelShape
    configs: dict[tuple[str, str], MoreauPrunerConfig] = field(default_factory=dict)
    scores: dict[tuple[str, str, int], UnitScores] = field(default_factory=dict)
    perplexity: dict[tuple[str, str, int, float], float] = field(default_factory=dict)

    def plan(self, criterion: str, name: str, seed: int, ratio: float) -> PruningPlan:
        """The plan of a run at a ratio."""
        config = self.configs[criterion, name].changed(seed=seed, pruning_ratio=ratio)
        return make_plan(self.scores[criterion, name, seed], self.shape, config)


def robustness(
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: Any,
    *,
    criteria: Sequence[str] = ("moreau", "taylor"),
    perturbations: str = "bf16,fp16,seeds:3",
    ratios: Sequence[float] = (0.2,),
    config: MoreauPrunerConfig | None = None,
    evaluate: Any = None,
    max_segments: int | None = None,
) -> list[Agreement]:
    """Compares the plans that criteria make of a model under perturbations.

    Args:
        load: gives the model anew; what it gives is changed.
        tokenizer: of the model.
        calibration: text, as for `load_calibration`.
        criteria: names.
        perturbations: what changes, as `parse_perturbations` reads it; `seeds:N` draws the calibration N times.
        ratios: pruning ratios; scores are made once for all.
        config: of everything else.
        evaluate: text to measure the perplexity of every pruned model on; takes a surgery and an evaluation each.
        max_segments: of that text.

    Returns:
        One agreement for each criterion, ratio and comparison.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    changes, seeds = _parsed(perturbations)
    configs = {criterion: (config or MoreauPrunerConfig()).changed(criterion=criterion) for criterion in criteria}
    given = _Given(load, tokenizer, calibration, evaluate, max_segments)
    model = load()
    check_prunable(model)
    own = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), None)
    changes = _with_loaded(changes, seeds, own)
    runs = _Runs(model_shape(model))
    for change in changes:
        model = change.change(model if change.kind == "base" else load())
        for criterion in criteria:
            _score(runs, given, model, configs[criterion], change, range(seeds))
        del model
    if evaluate is not None:
        _measure(runs, given, changes, ratios)
    asked = product(criteria, ratios)
    return [one for criterion, ratio in asked for one in _compare(runs, changes, seeds, criterion, ratio, own)]


def _parsed(perturbations: str) -> tuple[list[Perturbation], int]:
    """What changes, and how many calibration draws there are.

    Raises:
        ConfigError: there is nothing to compare.
    """
    changes, seeds = parse_perturbations(perturbations)
    if not changes and seeds == 1:
        raise ConfigError("perturbations: nothing to compare; give some, or seeds:2")
    return changes, seeds


def _with_loaded(changes: Sequence[Perturbation], seeds: int, own: str | None) -> list[Perturbation]:
    """The model as loaded, and the changes that change it.

    Raises:
        ConfigError: there is nothing to compare.
    """
    found = [Perturbation(BASE, "base"), *(change for change in changes if change.name != own)]
    if len(found) == 1 and seeds == 1:
        raise ConfigError(f"perturbations: nothing to compare, the model is in {own} already; give others, or seeds:2")
    return found


def _measure(runs: _Runs, given: _Given, changes: Sequence[Perturbation], ratios: Sequence[float]) -> None:
    """Measures the perplexity of every pruned model."""
    by_name = {change.name: change for change in changes}
    for criterion, name, seed in runs.scores:
        for ratio in ratios:
            plan = runs.plan(criterion, name, seed, ratio)
            runs.perplexity[criterion, name, seed, ratio] = _pruned_perplexity(given, by_name[name], plan)


def _pruned_perplexity(given: _Given, change: Perturbation, plan: PruningPlan) -> float:
    """Of a model that is freed on return: one is in memory at a time."""
    pruned = change.change(given.load())
    apply_plan(pruned, plan)
    tokenizer: Any = given.tokenizer
    return perplexity(pruned, tokenizer, given.evaluate, max_segments=given.max_segments).perplexity


def _score(
    runs: _Runs,
    given: _Given,
    model: PreTrainedModel,
    config: MoreauPrunerConfig,
    change: Perturbation,
    seeds: range,
) -> None:
    if change.kind == "samples":
        config = replace(config, calibration_samples=int(change.value))
    resolved = config.resolve(model.config)
    runs.configs[config.criterion.name, change.name] = resolved
    for seed in seeds:
        tokens = None
        if needs_text(config):
            tokens = load_calibration(
                given.calibration,
                given.tokenizer,
                samples=config.calibration_samples,
                sequence_length=config.sequence_length,
                seed=seed,
                vocab_size=model.config.vocab_size,
            ).tokens
        logger.info("%s: %s, seed %d", change.name, config.criterion.name, seed)
        scores = score_units(model, runs.shape, tokens, replace(resolved, seed=seed))
        runs.scores[config.criterion.name, change.name, seed] = scores


def _compare(
    runs: _Runs, changes: Sequence[Perturbation], seeds: int, criterion: str, ratio: float, own: str | None
) -> Iterator[Agreement]:
    """Every change against the model as loaded, the dtypes among each other, and the draws of each calibration size."""
    plans = {
        (change.name, seed): runs.plan(criterion, change.name, seed, ratio)
        for change in changes
        for seed in range(seeds)
    }

    def agreement(pairs: list[Pair], between: tuple[str, str], of: str) -> Agreement:
        return _agreement(runs, plans, (criterion, ratio), pairs, between, of)

    label = {BASE: own or BASE}
    kinds = {change.name: change.kind for change in changes}
    for one, two in combinations(changes, 2):
        if one.kind == "base" or kinds[one.name] == kinds[two.name] == "dtype":
            pairs = [((one.name, seed), (two.name, seed)) for seed in range(seeds)]
            yield agreement(pairs, (label.get(one.name, one.name), two.name), "")
    for change in changes if seeds > 1 else ():
        if change.kind in ("base", "samples"):
            draws = [((change.name, a), (change.name, b)) for a, b in combinations(range(seeds), 2)]
            yield agreement(draws, ("draw", "draw"), label.get(change.name, change.name))


def _agreement(
    runs: _Runs,
    plans: Mapping[Run, PruningPlan],
    asked: tuple[str, float],
    pairs: Sequence[Pair],
    between: tuple[str, str],
    of: str,
) -> Agreement:
    """How much the plans and scores of some pairs of runs agree.

    Args:
        runs: what was scored.
        plans: of the runs.
        asked: the criterion and the ratio of the plans.
        pairs: of runs.
        between: the two that are compared, for the record.
        of: what the draws are of; empty where no draws are compared.
    """
    criterion, ratio = asked
    overlaps = [plan_overlap(plans[one], plans[two]) for one, two in pairs]
    ranks = [_ranks(*(runs.scores[criterion, *key] for key in pair)) for pair in pairs]
    blocks = sorted(set.intersection(*(set(rank) & set(o) for rank, o in zip(ranks, overlaps, strict=True))))
    units = {block: len(runs.scores[criterion, *pairs[0][0]].values[block]) for block in ranks[0]}
    mean = statistics.mean
    kept, removed = ([getattr(o["all"], side) for o in overlaps] for side in ("kept", "removed"))
    measured: tuple[float, float] | None = None
    if runs.perplexity and of == "":
        sides = [[runs.perplexity[criterion, *pair[side], ratio] for pair in pairs] for side in (0, 1)]
        measured = mean(sides[0]), mean(sides[1])
    return Agreement(
        criterion,
        ratio,
        between,
        of,
        mean(kept),
        _deviation(kept),
        mean(removed),
        _deviation(removed),
        mean(sum(rank[b] * units[b] for b in rank) / sum(units[b] for b in rank) for rank in ranks),
        len(pairs),
        {block: _layer(block, overlaps, ranks) for block in blocks},
        measured,
        None if measured is None else abs(measured[0] - measured[1]),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _layer(block: str, overlaps: Sequence[Mapping[str, Any]], ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the pairs, of one block."""
    return {
        "kept": statistics.mean(o[block].kept for o in overlaps),
        "removed": statistics.mean(o[block].removed for o in overlaps),
        "rank": statistics.mean(rank[block] for rank in ranks),
    }


def _ranks(first: UnitScores, second: UnitScores) -> dict[str, float]:
    """Rank correlation of two runs' scores in each block of several units."""
    return {
        block: rank_correlation(values, second.values[block])
        for block, values in first.values.items()
        if len(values) > 1 and not block.startswith(PROFILES)
    }
