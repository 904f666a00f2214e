"""Does the choice of units survive? Plans of one model under small changes of its weights and of the calibration draw.

MoreauPruner, Tables 1 and 8, ask it of bfloat16 against float16. Every model change is scored with every calibration
seed, once; all ratios are planned from those scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from statistics import mean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import MoreauPrunerConfig
from ..config.validation import check_bos
from ..data.windows import CalibrationText
from ..errors import ConfigError
from ..models.buffers import reset_buffers
from ..models.undisturbed import undisturbed
from ..models.units import ModelShape, model_shape
from ..planning import PruningPlan, make_plan, plan_overlap
from ..registry import suggestion
from ..scoring.profiles import PROFILES
from ..scoring.scores import UnitScores, needs_text, score_units
from ..surgery.apply import apply_plan, check_prunable
from .findings import DTYPES, Agreement, deviation, rank_correlation
from .perplexity import perplexity

logger = logging.getLogger(__name__)

_PLAIN = {**dict.fromkeys(DTYPES, "dtype"), "int8": "int8"}  # name → kind
# kind → how its number is read, and what it is
_NUMBERED: dict[str, tuple[type, str]] = {
    "noise": (float, "a level, e.g. noise:0.01"),
    "samples": (int, "a whole number ≥ 1, e.g. samples:5"),
    "seeds": (int, "a whole number ≥ 1, e.g. seeds:5"),
}
_KNOWN = ", ".join((*_PLAIN, "noise:LEVEL", "samples:N", "seeds:N"))
_BASE = "as loaded"  # the name of the model as it is

# A run of one criterion: the name of its perturbation, and the seed of its calibration.
Run = tuple[str, int]


@dataclass(frozen=True)
class Perturbation:
    """A change of the model, or of how much it is calibrated on.

    Attributes:
        name: `bf16`, `fp16`, `fp32`, `int8`, `noise:0.01`, `samples:100`, or that of the model as it is.
        kind: `dtype`, `int8`, `noise`, `samples` or `base`.
        value: the level, or the number of samples.
    """

    name: str
    kind: str
    value: float = 0.0

    @torch.no_grad()
    def change(self, model: PreTrainedModel) -> PreTrainedModel:
        """In place: makes the change; returns the model."""
        if self.kind == "dtype":
            changed: Any = model
            reset_buffers(changed.to(DTYPES[self.name]))  # frequencies stay float32 where a model is loaded so
        generator = torch.Generator("cpu").manual_seed(0)
        for parameter in model.parameters() if self.kind in ("noise", "int8") else ():
            if parameter.dim() != 2:
                continue
            w = parameter.float()
            if self.kind == "noise":  # w ← w + level·|w|·z
                z = torch.randn(w.shape, generator=generator, dtype=torch.float32, device="cpu").to(w.device)
                parameter.copy_(w + self.value * w.abs() * z)
            else:  # w ← round(w/s)·s, s = max|w|/127 of each output row
                s = w.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
                parameter.copy_((w / s).round() * s)
        return model


def parse_perturbations(text: str) -> tuple[list[Perturbation], int]:
    """Reads `bf16,fp16,noise:0.01,int8,samples:100,seeds:5`; returns the perturbations and the number of seeds.

    Raises:
        ConfigError: an unknown name, a number that is missing or out of range, or nothing to compare.
    """
    found, seeds = [], 1
    for part in map(str.strip, text.split(",")):
        kind, _, number = part.partition(":")
        if part in _PLAIN:
            found.append(Perturbation(part, _PLAIN[part]))
            continue
        if kind not in _NUMBERED:
            raise ConfigError(f"perturbations: unknown '{part}'.{suggestion(kind, DTYPES)} Known: {_KNOWN}")
        read, wanted = _NUMBERED[kind]
        try:
            value = read(number)
        except ValueError:
            value = 0
        if not value > 0:
            raise ConfigError(f"perturbations: '{part}' needs {wanted}")
        if kind == "seeds":
            seeds = value
        else:
            found.append(Perturbation(part, kind, value))
    if not found and seeds == 1:
        raise ConfigError("perturbations: nothing to compare; give some, or seeds:2")
    return list(dict.fromkeys(found)), seeds


@dataclass
class _Runs:
    """What was found: (criterion, perturbation, seed) → scores; with a ratio → plan, and what it costs."""

    text: CalibrationText
    shape: ModelShape
    ratios: Sequence[float]
    scores: dict[tuple[str, str, int], UnitScores] = field(default_factory=dict)
    plans: dict[tuple[str, str, int, float], PruningPlan] = field(default_factory=dict)
    perplexity: dict[tuple[str, str, int, float], float] = field(default_factory=dict)
    protocol: str = ""  # of those

    @undisturbed()
    def score(self, model: PreTrainedModel, config: MoreauPrunerConfig, change: Perturbation, seeds: int) -> None:
        """Scores a changed model with every calibration seed, and plans at every ratio."""
        if change.kind == "samples":
            config = replace(config, calibration_samples=int(change.value))
        resolved = config.resolve(model.config)
        size = config.calibration_samples, config.sequence_length
        for seed in range(seeds):
            key = (config.criterion.name, change.name, seed)
            tokens = None
            if needs_text(config):
                tokens = self.text.windows(*size, seed, vocab_size=model.config.vocab_size).tokens
            logger.info("%s: %s, seed %d", change.name, config.criterion.name, seed)
            self.scores[key] = score_units(model, self.shape, tokens, replace(resolved, seed=seed))
            for ratio in self.ratios:
                sized = resolved.changed(seed=seed, pruning_ratio=ratio)
                self.plans[*key, ratio] = make_plan(self.scores[key], self.shape, sized)

    def measure(
        self, change: Perturbation, load: Callable[[], Any], tokenizer: Any, text: Any, **settings: Any
    ) -> None:
        """Measures the perplexity of a changed model, pruned by each of its plans; one is in memory at a time."""
        for key, plan in self.plans.items():
            if key[1] == change.name:
                pruned = change.change(load())
                apply_plan(pruned, plan)
                found = perplexity(pruned, tokenizer, text, **settings)
                self.perplexity[key], self.protocol = found.perplexity, found.protocol
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
    bos: str = "auto",
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
        bos: how a segment of it begins, as for `perplexity`.

    Returns:
        One agreement for each criterion, ratio and comparison.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    check_bos(bos)
    changes, seeds = parse_perturbations(perturbations)
    configs = [(config or MoreauPrunerConfig()).changed(criterion=criterion) for criterion in criteria]
    model = load()
    check_prunable(model)
    changes = _with_base(changes, seeds, model)
    runs = _Runs(CalibrationText(calibration, tokenizer), model_shape(model), ratios)
    for change in changes:
        model = change.change(model if change.kind == "base" else load())
        for one in configs:
            runs.score(model, one, change, seeds)
        del model
    for change in changes if evaluate is not None else ():
        runs.measure(change, load, tokenizer, evaluate, max_segments=max_segments, bos=bos)
    asked = product(criteria, ratios, list(_comparisons(changes, seeds)))
    return [_agreement(runs, criterion, ratio, *compared) for criterion, ratio, compared in asked]


def _with_base(changes: Sequence[Perturbation], seeds: int, model: PreTrainedModel) -> list[Perturbation]:
    """The model as it is loaded, first, and the changes of it; raises ConfigError where nothing is to compare."""
    own = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), _BASE)
    found = [Perturbation(own, "base"), *(change for change in changes if change.name != own)]
    if len(found) == 1 and seeds == 1:
        raise ConfigError(f"perturbations: nothing to compare, the model is in {own} already; give others, or seeds:2")
    return found


def _comparisons(
    changes: Sequence[Perturbation], seeds: int
) -> Iterator[tuple[tuple[str, str], str, list[tuple[Run, Run]]]]:
    """Every change against the model as loaded, the dtypes among each other, and the draws of each calibration size."""
    for one, two in combinations(changes, 2):
        if one.kind == "base" or one.kind == two.kind == "dtype":
            yield (one.name, two.name), "", [((one.name, seed), (two.name, seed)) for seed in range(seeds)]
    for change in changes if seeds > 1 else ():
        if change.kind in ("base", "samples"):
            draws = combinations([(change.name, seed) for seed in range(seeds)], 2)
            yield ("draw", "draw"), change.name, list(draws)


def _agreement(
    runs: _Runs, criterion: str, ratio: float, between: tuple[str, str], of: str, pairs: Sequence[tuple[Run, Run]]
) -> Agreement:
    """How much the plans and scores of pairs of runs agree, at a ratio."""
    scores = [[runs.scores[criterion, *run] for run in pair] for pair in pairs]
    overlaps = [plan_overlap(*(runs.plans[criterion, *run, ratio] for run in pair)) for pair in pairs]
    ranks = [_ranks(*pair) for pair in scores]
    units = {block: len(scores[0][0].values[block]) for block in ranks[0]}
    kept, removed = ([getattr(one["all"], side) for one in overlaps] for side in ("kept", "removed"))
    layers = {
        block: {
            "kept": mean(one[block].kept for one in overlaps),
            "removed": mean(one[block].removed for one in overlaps),
            "rank": mean(rank[block] for rank in ranks),
        }
        for block in sorted(set(ranks[0]).intersection(*ranks, *overlaps))
    }
    measured: tuple[float, float] | None = None
    if runs.perplexity and of == "":
        one, two = (mean(runs.perplexity[criterion, *run, ratio] for run in side) for side in zip(*pairs, strict=True))
        measured = one, two
    alike = (mean(kept), deviation(kept), mean(removed), deviation(removed))
    rank = mean(sum(rank[block] * units[block] for block in rank) / sum(units.values()) for rank in ranks)
    difference = None if measured is None else abs(measured[0] - measured[1])
    protocol = "" if measured is None else runs.protocol
    return Agreement(criterion, ratio, between, of, *alike, rank, len(pairs), layers, measured, difference, protocol)


def _ranks(first: UnitScores, second: UnitScores) -> dict[str, float]:
    """Rank correlation of two runs' scores in each block of several units."""
    return {
        block: rank_correlation(values, second.values[block])
        for block, values in first.values.items()
        if len(values) > 1 and not block.startswith(PROFILES)
    }
