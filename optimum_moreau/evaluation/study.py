"""Looks into a model at hand: how criteria rank its channels, and what their choices cost (the paper's figures).

Plans are tried out by silencing units, so that one loaded model serves for every point of every curve.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property, partial
from statistics import mean
from typing import Any

from scipy.stats import rankdata
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import MoreauPrunerConfig
from ..config.settings import settings_of
from ..data.sources import read_documents
from ..data.windows import CalibrationText
from ..errors import ConfigError, PlanError, UnsupportedModelError
from ..models.hooks import silent
from ..models.placement import is_offloaded
from ..models.undisturbed import undisturbed
from ..models.units import ModelShape, decoder_layers, model_shape
from ..planning import PruningPlan, expected_plan, make_plan
from ..registry import CRITERIA
from ..scoring.scores import UnitScores, needs_text, score_channels, score_units
from ..surgery.apply import check_prunable
from .findings import ChannelRanks, Curve, Panel, deviation, rank_correlation
from .perplexity import SEGMENT, Segments, measure_segments, segment

logger = logging.getLogger(__name__)
_bar = partial(tqdm, leave=False, disable=None)

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
LAYER_SHARE = 0.25  # of a layer's units, the paper's protocol
# The factors of their defaults that are tried, of settings that have a symbol.
_FACTORS = {"eta_quantile": (0, 0.5, 1, 2, 4), "eta": (1, 1e2, 1e4, 1e6), "steps": (0.1, 0.5, 1, 2)}
_OTHER_FACTORS = (0.25, 0.5, 1, 2, 4)


@contextmanager
def silenced(model: PreTrainedModel, shape: ModelShape, plan: PruningPlan) -> Iterator[None]:
    """Within the block the base model computes what it would with the plan applied; its weights are never changed.

    Raises:
        PlanError: the plan takes hidden channels or whole layers.
    """
    if plan.hidden is not None or plan.kept_layers is not None:
        raise PlanError("only heads and MLP channels can be silenced; leave hidden and layers out of the targets")
    layers = decoder_layers(model)
    gone = [sorted(set(range(block.total)) - set(plan.kept(block).kept)) for block in shape.blocks]
    with silent((layers[b.layer or 0], b, own) for b, own in zip(shape.blocks, gone, strict=True) if own):
        yield


class Study:
    """Looks into one model: scores it, tries plans out, measures.

    Args:
        model: a causal language model, all of it in memory; after each call it is bit for bit as it was.
        tokenizer: its tokenizer.
        calibration: text, as for `load_calibration`.
        evaluate: text to measure the perplexity on, in segments of 128 tokens; needed for all but ranks and plans.
        config: what is common to all that is tried; sizes and criterion are given to each call.
        seeds: calibration draws that every point is a mean over.
        max_segments: of the text.
        bos: how a segment of it begins, as for `perplexity`.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        calibration: Any,
        evaluate: Any = None,
        *,
        config: MoreauPrunerConfig | None = None,
        seeds: int = 1,
        max_segments: int | None = None,
        bos: str = "auto",
    ) -> None:
        check_prunable(model)
        if is_offloaded(model):
            raise UnsupportedModelError("insight tries plans out in memory; load the model without offload")
        self.model, self.text = model, CalibrationText(calibration, tokenizer)
        self.config, self.seeds = config or MoreauPrunerConfig(), seeds
        if not set(self.config.targets) <= {"attention", "mlp"}:
            raise ConfigError("targets: insight looks into heads and MLP channels; leave hidden and layers out")
        self.shape = model_shape(model)
        self.segments: Segments | None = None
        if evaluate is not None:
            self.segments = segment(read_documents(evaluate, seed=None), tokenizer, SEGMENT, max_segments, bos=bos)

    def check(self, ratios: Iterable[float] = (), layers: Iterable[int] = ()) -> None:
        """Refuses, before anything is scored, what the scope or the model cannot give.

        Raises:
            PlanError: a share of the parameters.
            ConfigError: a layer.
        """
        for ratio in ratios:
            expected_plan(self.shape, self._config(self.config.criterion.name, pruning_ratio=ratio))
        for layer in layers:
            if not 0 <= layer < self.shape.depth:
                raise ConfigError(f"layers: {layer} lies outside the model's layers 0 to {self.shape.depth - 1}")

    def ranks(self, criteria: Sequence[str], layers: Iterable[int] | None = None) -> tuple[ChannelRanks, ...]:
        """Compares how two criteria rank the channels of every matrix of some layers.

        Args:
            criteria: two names.
            layers: indices; default: the first, the last and two between.
        """
        last = self.shape.depth - 1
        chosen = {round(last * part / 3) for part in range(4)} if layers is None else set(layers)
        self.check(layers=sorted(chosen))
        if len(criteria) != 2:
            raise ConfigError(f"criteria: ranks compare two, not {len(criteria)}")
        # every layer is scored, as for the other figures: noise and δ reach all that may be cut
        runs = [[self._channels(name, seed) for name in criteria] for seed in range(self.seeds)]
        found = []
        for block in (block for block in self.shape.blocks if block.layer in chosen):
            for name in dict.fromkeys(block.weight_names().values()):
                if not all(name in one for run in runs for one in run):  # some criteria score o_proj and down_proj only
                    continue
                module = name.removeprefix("model.").removesuffix(".weight")
                correlation = mean(rank_correlation(one[name], two[name]) for one, two in runs)
                ranks = [rankdata(one[name].numpy(), method="ordinal").astype(int).tolist() for one in runs[0]]
                both = (tuple(ranks[0]), tuple(ranks[1]))
                found.append(ChannelRanks(module, (criteria[0], criteria[1]), both, correlation))
        return tuple(found)

    def single_layers(self, criteria: Sequence[str], share: float = LAYER_SHARE) -> Panel:
        """Perplexity when a share of the heads and channels of one layer alone is removed, for every layer."""
        layers = range(self.shape.depth)

        def costs(name: str, seed: int) -> list[float]:
            scores, _ = self._scores(name, seed, **self._everywhere)
            scopes = (dict.fromkeys(self._everywhere, (i, i + 1)) for i in _bar(layers, desc=f"layers, {name}"))
            configs = (self._config(name, seed=seed, unit_ratio=share, **scope) for scope in scopes)
            return [self._cost(scores, config) for config in configs]

        title = f"{100 * share:g} % of the heads and channels of a single layer removed"
        return Panel(title, "layer (0 is next to the input)", self._curves(criteria, layers, costs), self.dense)

    def over_ratios(self, criteria: Sequence[str], ratios: Sequence[float] | None = None) -> Panel:
        """Perplexity over the share of the parameters removed.

        Args:
            criteria: names.
            ratios: shares; default: those of RATIOS that the scope can give.

        Raises:
            PlanError: the scope cannot give one of the shares; before anything is scored.
        """
        ratios = [ratio for ratio in RATIOS if self._gives(ratio)] if ratios is None else sorted(ratios)
        self.check(ratios)

        def costs(name: str, seed: int) -> list[float]:
            scores, config = self._scores(name, seed)
            bar = _bar(ratios, desc=f"ratios, {name}")
            return [self.dense, *(self._cost(scores, config.changed(pruning_ratio=ratio)) for ratio in bar)]

        curves = self._curves(criteria, [0, *(100 * ratio for ratio in ratios)], costs)
        return Panel("Perplexity over the pruning ratio", "parameters removed (%)", curves, self.dense)

    def sensitivity(self, criterion: str, ratio: float = 0.2) -> tuple[Panel, ...]:
        """Perplexity over each of the criterion's settings η, ρ, σ and T, the others at their defaults."""
        defaults = self._config(criterion).criterion
        symbols = _symbols(defaults)
        if not symbols:
            raise ConfigError(f"sensitivity: {criterion} has none of the settings η, ρ, σ, T; take moreau or moreau-gs")

        @cache
        def cost(seed: int, **changes: float) -> float:
            scores, config = self._scores(criterion, seed, **changes)
            return self._cost(scores, config.changed(pruning_ratio=ratio))

        panels = []
        for name, symbol in symbols.items():
            default = getattr(defaults, name)
            values = sorted({_scaled(name, default, factor) for factor in _FACTORS.get(name, _OTHER_FACTORS)})
            changes: list[dict[str, float]] = [{} if value == default else {name: value} for value in values]
            runs = [[cost(seed, **one) for one in _bar(changes, desc=symbol)] for seed in range(self.seeds)]
            title = f"{symbol} ({criterion}, {100 * ratio:g} % removed)"
            curve = _curve(criterion, values, runs)
            panels.append(Panel(title, symbol, (curve,), self.dense, default, name != "eta_quantile"))
        return tuple(panels)

    def plan(self, criterion: str, ratio: float = 0.2) -> PruningPlan:
        """The plan of a criterion, with the first seed."""
        scores, config = self._scores(criterion, 0)
        return make_plan(scores, self.shape, config.changed(pruning_ratio=ratio))

    @property
    def protocol(self) -> str:
        """How the perplexity is measured, in words; empty without a text."""
        return "" if self.segments is None else self.segments.protocol

    @cached_property
    def dense(self) -> float:
        """Perplexity of the unpruned model."""
        return self._perplexity()

    @property
    def _everywhere(self) -> dict[str, Any]:
        return dict.fromkeys(("attention_layers", "mlp_layers"), (0, self.shape.depth))

    def _gives(self, ratio: float) -> bool:
        """Whether the scope can give that share of the parameters."""
        try:
            self.check([ratio])
        except PlanError:
            return False
        return True

    def _config(self, criterion: str, **changes: Any) -> MoreauPrunerConfig:
        return self.config.changed(criterion=criterion, **changes).resolve(self.model.config)

    @undisturbed()
    def _calibration(self, config: MoreauPrunerConfig, seed: int) -> Tensor | None:
        if not needs_text(config):
            return None
        size = config.calibration_samples, config.sequence_length
        return self.text.windows(*size, seed, vocab_size=self.model.config.vocab_size).tokens

    def _channels(self, criterion: str, seed: int) -> dict[str, Tensor]:
        config = self._config(criterion, seed=seed, **self._everywhere)
        return score_channels(self.model, self.shape.blocks, self._calibration(config, seed), config)

    def _scores(self, criterion: str, seed: int, **changes: Any) -> tuple[UnitScores, MoreauPrunerConfig]:
        config = self._config(criterion, seed=seed, **changes)
        logger.info("scoring by %s, seed %d %s", criterion, seed, changes or "")
        return score_units(self.model, self.shape, self._calibration(config, seed), config), config

    def _cost(self, scores: UnitScores, config: MoreauPrunerConfig) -> float:
        with silenced(self.model, self.shape, make_plan(scores, self.shape, config)):
            return self._perplexity()

    def _perplexity(self) -> float:
        if self.segments is None:
            raise ConfigError("evaluate: this figure needs a text to measure the perplexity on (--evaluate)")
        return measure_segments(self.model, self.segments).perplexity

    def _curves(
        self, criteria: Sequence[str], x: Iterable[float], costs: Callable[[str, int], list[float]]
    ) -> tuple[Curve, ...]:
        """One curve for each criterion, of what `costs` gives for it and each seed."""
        return tuple(_curve(name, x, [costs(name, seed) for seed in range(self.seeds)]) for name in criteria)


def has_settings(criterion: str) -> bool:
    """Whether a criterion has one of the settings whose sensitivity is shown."""
    return bool(_symbols(CRITERIA.get(criterion)().resolved()))


def _symbols(criterion: Any) -> dict[str, str]:
    """Setting in use → its symbol, in the order of the paper: η, ρ, σ, T."""
    named = [one for one in settings_of(criterion) if one.symbol and getattr(criterion, one.name) is not None]
    return {one.name: one.symbol for one in sorted(named, key=lambda one: "ηρσT".index(one.symbol[0]))}


def _scaled(name: str, default: float, factor: float) -> float:
    value = default * factor
    return max(round(value), 1) if name == "steps" else min(value, 0.95) if name == "eta_quantile" else value


def _curve(label: str, x: Iterable[float], runs: Sequence[Sequence[float]]) -> Curve:
    """Mean and deviation over runs, one a seed."""
    points = list(zip(*runs, strict=True))
    return Curve(label, tuple(map(float, x)), tuple(map(mean, points)), tuple(map(deviation, points)))
