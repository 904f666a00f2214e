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


@dataclass
class _Runs:
    """What `robustness` was given, what was scored, (criterion, perturbation, seed) → scores, and what was measured."""

    load: Callable[[], PreTrainedModel]
    tokenizer: Any
    calibration: Any
    shape: ModelShape
    configs: dict[tuple[str, str], MoreauPrunerConfig] = field(default_factory=dict)
    scores: dict[tuple[str, str, int], UnitScores] = field(default_factory=dict)
    perplexity: dict[tuple[str, str, int, float], float] = field(default_factory=dict)

    def score(self, model: PreTrainedModel, config: MoreauPrunerConfig, change: Perturbation, seeds: range) -> None:
        """Scores a changed model with every calibration seed."""
        if change.kind == "samples":
            config = replace(config, calibration_samples=int(change.value))
        criterion, resolved = config.criterion.name, config.resolve(model.config)
        self.configs[criterion, change.name] = resolved
        for seed in seeds:
            tokens = None
            if needs_text(config):
                tokens = load_calibration(
                    self.calibration,
                    self.tokenizer,
                    samples=config.calibration_samples,
                    sequence_length=config.sequence_length,
                    seed=seed,
                    vocab_size=model.config.vocab_size,
                ).tokens
            logger.info("%s: %s, seed %d", change.name, criterion, seed)
            scores = score_units(model, self.shape, tokens, replace(resolved, seed=seed))
            self.scores[criterion, change.name, seed] = scores

    def plan(self, criterion: str, name: str, seed: int, ratio: float) -> PruningPlan:
        """The plan of a run at a ratio."""
        config = self.configs[criterion, name].changed(seed=seed, pruning_ratio=ratio)
        return make_plan(self.scores[criterion, name, seed], self.shape, config)

    def measure(self, change: Perturbation, ratios: Sequence[float], text: Any, max_segments: int | None) -> None:
        """Measures the perplexity of a changed model, pruned by each of its plans; one is in memory at a time."""
        keys = [key for key in self.scores if key[1] == change.name]
        for key, ratio in product(keys, ratios):
            pruned = change.change(self.load())
            apply_plan(pruned, self.plan(*key, ratio))
            found = perplexity(pruned, self.tokenizer, text, max_segments=max_segments)
            self.perplexity[(*key, ratio)] = found.perplexity
            del pruned


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
    changes, seeds = parse_perturbations(perturbations)
    if not changes and seeds == 1:
        raise ConfigError("perturbations: nothing to compare; give some, or seeds:2")
    configs = [(config or MoreauPrunerConfig()).changed(criterion=criterion) for criterion in criteria]
    model = load()
    check_prunable(model)
    own = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), None)
    changes = [Perturbation(BASE, "base"), *(change for change in changes if change.name != own)]
    if len(changes) == 1 and seeds == 1:
        raise ConfigError(f"perturbations: nothing to compare, the model is in {own} already; give others, or seeds:2")
    runs = _Runs(load, tokenizer, calibration, model_shape(model))
    for change in changes:
        model = change.change(model if change.kind == "base" else load())
        for one in configs:
            runs.score(model, one, change, range(seeds))
        del model
    for change in changes if evaluate is not None else ():
        runs.measure(change, ratios, evaluate, max_segments)
    return [one for asked in product(criteria, ratios) for one in _compare(runs, changes, seeds, *asked, own)]


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
    """How much the plans and scores of pairs of runs agree; `asked` is the criterion and the ratio of the plans."""
    criterion, ratio = asked
    overlaps = [plan_overlap(plans[one], plans[two]) for one, two in pairs]
    ranks = [_ranks(*(runs.scores[criterion, *key] for key in pair)) for pair in pairs]
    blocks = sorted(set.intersection(*(set(rank) & set(o) for rank, o in zip(ranks, overlaps, strict=True))))
    units = {block: len(runs.scores[criterion, *pairs[0][0]].values[block]) for block in ranks[0]}
    mean = statistics.mean
    kept, removed = ([getattr(o["all"], side) for o in overlaps] for side in ("kept", "removed"))
    layers = {
        block: {
            "kept": mean(o[block].kept for o in overlaps),
            "removed": mean(o[block].removed for o in overlaps),
            "rank": mean(rank[block] for rank in ranks),
        }
        for block in blocks
    }
    measured: tuple[float, float] | None = None
    if runs.perplexity and of == "":
        one, two = (mean(runs.perplexity[criterion, *pair[side], ratio] for pair in pairs) for side in (0, 1))
        measured = one, two
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
        layers,
        measured,
        None if measured is None else abs(measured[0] - measured[1]),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _ranks(first: UnitScores, second: UnitScores) -> dict[str, float]:
    """Rank correlation of two runs' scores in each block of several units."""
    return {
        block: rank_correlation(values, second.values[block])
        for block, values in first.values.items()
        if len(values) > 1 and not block.startswith(PROFILES)
    }
