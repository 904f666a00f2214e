"""Does the choice of units survive? Plans of one model under small changes of its weights and of the calibration draw.

MoreauPruner, Tables 1 and 8, ask it of bfloat16 against float16. Every model change is scored with every calibration
seed, once; all ratios are planned from those scores.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import SIZES, MoreauPrunerConfig
from ..data.windows import load_calibration
from ..errors import ConfigError
from ..files import filled
from ..models.units import ModelShape, model_shape
from ..planning import PruningPlan, make_plan, plan_overlap
from ..scoring.profiles import PROFILES
from ..scoring.scores import UnitScores, needs_text, score_units
from ..surgery.apply import apply_plan, check_prunable
from .perplexity import perplexity
from .perturbation import BASE, DTYPES, Perturbation, parse_perturbations
from .ranks import rank_correlation

logger = logging.getLogger(__name__)


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
        sides = ((self.kept, self.kept_deviation), (self.removed, self.removed_deviation))
        kept, removed = (f"{mean:.3f}" + (f" ± {spread:.3f}" if self.pairs > 1 else "") for mean, spread in sides)
        return kept, removed, f"{self.rank:.3f}"

    @property
    def is_of_dtypes(self) -> bool:
        """Whether two dtypes are compared."""
        return set(self.between) <= set(DTYPES)

    def to_dict(self) -> dict[str, Any]:
        """Returns the agreement as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Agreement:
        """Makes one from what `to_dict` gave.

        Raises:
            ConfigError: it is not that.
        """
        return filled(cls, values, "agreement", "what `robustness` wrote", ConfigError)


@dataclass
class _Runs:
    """What was scored: (criterion, perturbation, seed) → scores; and what was measured of it."""

    shape: ModelShape
    configs: dict[tuple[str, str], MoreauPrunerConfig] = field(default_factory=dict)
    scores: dict[tuple[str, str, int], UnitScores] = field(default_factory=dict)
    perplexity: dict[tuple[str, str, int, float], float] = field(default_factory=dict)

    def plan(self, criterion: str, name: str, seed: int, ratio: float) -> PruningPlan:
        """The plan of a run at a ratio."""
        size: dict[str, Any] = {**dict.fromkeys(SIZES), "pruning_ratio": ratio}
        config = replace(self.configs[criterion, name], seed=seed, **size)
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
    changes, seeds = parse_perturbations(perturbations)
    if not changes and seeds == 1:
        raise ConfigError("perturbations: nothing to compare; give some, or seeds:2")
    configs = {criterion: replace(config or MoreauPrunerConfig(), criterion=criterion) for criterion in criteria}
    model = load()
    check_prunable(model)
    own = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), None)
    changes = [Perturbation(BASE, "base"), *(change for change in changes if change.name != own)]
    if len(changes) == 1 and seeds == 1:
        raise ConfigError(f"perturbations: nothing to compare, the model is in {own} already; give others, or seeds:2")
    runs = _Runs(model_shape(model))
    for change in changes:
        model = change.change(model if change.kind == "base" else load())
        for criterion in criteria:
            _score(runs, model, tokenizer, calibration, configs[criterion], change, range(seeds))
        del model
    if evaluate is not None:
        for change in changes:
            for criterion, seed, ratio in ((c, s, r) for c in criteria for s in range(seeds) for r in ratios):
                plan = runs.plan(criterion, change.name, seed, ratio)
                found = _pruned_perplexity(change, load, plan, tokenizer, evaluate, max_segments)
                runs.perplexity[criterion, change.name, seed, ratio] = found
    return [
        one
        for criterion in criteria
        for ratio in ratios
        for one in _compare(runs, changes, seeds, criterion, ratio, own)
    ]


def _pruned_perplexity(
    change: Perturbation,
    load: Callable[[], PreTrainedModel],
    plan: PruningPlan,
    tokenizer: Any,
    evaluate: Any,
    max_segments: int | None,
) -> float:
    """Of a model that is freed on return: one is in memory at a time."""
    pruned = change.change(load())
    apply_plan(pruned, plan)
    return perplexity(pruned, tokenizer, evaluate, max_segments=max_segments).perplexity


def _score(
    runs: _Runs,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: Any,
    config: MoreauPrunerConfig,
    change: Perturbation,
    seeds: range,
) -> None:
    if change.kind == "samples":
        config = replace(config, calibration_samples=int(change.value))
    resolved = config.resolve(model.config)
    runs.configs[config.criterion, change.name] = resolved
    for seed in seeds:
        tokens = None
        if needs_text(config):
            tokens = load_calibration(
                calibration,
                tokenizer,
                samples=config.calibration_samples,
                sequence_length=config.sequence_length,
                seed=seed,
                vocab_size=model.config.vocab_size,
            ).tokens
        logger.info("%s: %s, seed %d", change.name, config.criterion, seed)
        scores = score_units(model, runs.shape, tokens, replace(resolved, seed=seed))
        runs.scores[config.criterion, change.name, seed] = scores


def _compare(
    runs: _Runs, changes: Sequence[Perturbation], seeds: int, criterion: str, ratio: float, own: str | None
) -> Iterator[Agreement]:
    """Every change against the model as loaded, the dtypes among each other, and the draws of each calibration size."""
    plans = {
        (change.name, seed): runs.plan(criterion, change.name, seed, ratio)
        for change in changes
        for seed in range(seeds)
    }

    def agreement(pairs: list[tuple[tuple[str, int], tuple[str, int]]], between: tuple[str, str], of: str) -> Agreement:
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
            statistics.stdev(kept) if len(kept) > 1 else 0.0,
            mean(removed),
            statistics.stdev(removed) if len(removed) > 1 else 0.0,
            mean(sum(rank[b] * units[b] for b in rank) / sum(units[b] for b in rank) for rank in ranks),
            len(pairs),
            {
                block: {
                    "kept": mean(o[block].kept for o in overlaps),
                    "removed": mean(o[block].removed for o in overlaps),
                    "rank": mean(rank[block] for rank in ranks),
                }
                for block in blocks
            },
            measured,
            None if measured is None else abs(measured[0] - measured[1]),
        )

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


def _ranks(first: UnitScores, second: UnitScores) -> dict[str, float]:
    """Rank correlation of two runs' scores in each block of several units."""
    return {
        block: rank_correlation(values, second.values[block])
        for block, values in first.values.items()
        if len(values) > 1 and not block.startswith(PROFILES)
    }


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
        if dtypes.removed == draws.removed == 1:
            says = "neither changes the choice"
        elif abs(dtypes.removed - draws.removed) <= dtypes.removed_deviation + draws.removed_deviation:
            says = "neither threatens the choice clearly more"
        else:
            few = " (one pair of draws only)" if draws.pairs == 1 else ""
            what = "calibration draw" if draws.removed < dtypes.removed else "dtype"
            says = f"the {what} threatens the choice more{few}"
        found.append(
            f"{criterion}, {100 * ratio:g} %: of the units removed, {' and '.join(dtypes.between)} share"
            f" {dtypes.removed:.2f}, two calibration draws {draws.removed:.2f}: {says}"
        )
    return found
