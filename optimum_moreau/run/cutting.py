"""What is done to a model in place, and the record of it: units cut, compensated for, or single weights masked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..compensation import check_compensation, compensated, described, rounds, without_removed
from ..config import MoreauPrunerConfig
from ..data.sources import model_reference
from ..data.windows import CalibrationSet
from ..errors import CheckpointError, OutOfMemoryError
from ..files import read_json
from ..masks import SparsitySummary, sparsify
from ..models.buffers import as_reloaded
from ..models.memory import peak_memory_bytes
from ..models.placement import prepare_offloaded
from ..models.units import ModelShape, model_shape
from ..planning import PruningPlan, contributions, fingerprint, make_plan, removed_unit_share, whole_plan
from ..saving.card import read_base_card
from ..saving.summary import SUMMARY_NAME, PruningSummary, layer_shapes, versions
from ..scoring.scores import UnitScores, score_units
from ..surgery.apply import BASE_PARAMETERS, apply_plan
from ..surgery.export import check_loadable, decide_export

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruningResult:
    """What `MoreauPruner.prune` did.

    Attributes:
        summary: counts, shares, export, times.
        plan: which units stayed.
        scores: the importance of every unit in scope; `None` if a plan was applied, or single weights were masked.
        sparsity: what was masked, if single weights were.
    """

    summary: PruningSummary
    plan: PruningPlan
    scores: UnitScores | None
    sparsity: SparsitySummary | None = None


def score_in_rounds(
    model: PreTrainedModel,
    shape: ModelShape,
    tokens: Tensor | None,
    text: CalibrationSet | None,
    config: MoreauPrunerConfig,
    **keeping: Any,
) -> UnitScores:
    """Scores the units; in several rounds, each time as the last one's cut and compensation leave the model.

    Args:
        model: the base model; afterwards it is as it was.
        shape: its shape.
        tokens: that scoring reads.
        text: that compensation reads.
        config: resolved.
        **keeping: `checkpoint` and `run` of `score_units`.
    """
    scores = score_units(model, shape, tokens, config, **keeping)
    known = text.distinct if text else None
    for earlier in rounds(config, shape)[:-1]:
        plan = make_plan(scores, shape, earlier)
        with compensated(model, shape, plan, text.tokens if text else None, earlier, undone=True, distinct=known):
            scores = without_removed(score_units(model, shape, tokens, config), plan, shape)
    return scores


def mask(
    model: PreTrainedModel, found: CalibrationSet | None, config: MoreauPrunerConfig, revision: str | None, start: float
) -> PruningResult:
    """In place: sets weights to zero by the config's pattern; the plan on record keeps every unit.

    Args:
        model: the base model.
        found: calibration windows; may be `None` where nothing reads them.
        config: resolved.
        revision: of the base model, for the record.
        start: when the run began, of `time.perf_counter`.
    """
    shape = model_shape(model)
    plan = replace(
        whole_plan(shape),
        base_model=model_reference(model.config.name_or_path),
        revision=revision,
        config=config.to_dict(),
        calibration=found.to_dict() if found else {},
    )
    before = fingerprint(model)
    check_loadable(model.config, shape, plan, config.export)  # what cannot be is refused before any zero
    advice = f"masking by {config.criterion}: too little memory; give fewer calibration_samples or a smaller batch_size"
    with as_reloaded(model), out_of_memory(lambda: advice):
        sparsity = sparsify(model, shape, None if found is None else found.tokens, config)
    result = cut(model, plan, None, None, start)
    return replace(result, plan=replace(plan, fingerprint=before), sparsity=sparsity)


def cut(
    model: PreTrainedModel, plan: PruningPlan, scores: UnitScores | None, text: CalibrationSet | None, start: float
) -> PruningResult:
    """In place: compensates for what goes, and applies the plan; before anything is cut an error leaves all as it was.

    Args:
        model: the base model.
        plan: what stays; carries its config.
        scores: that it was made from, if it was.
        text: that its compensation reads; `None`: there is none.
        start: when the run began, of `time.perf_counter`.
    """
    prepare_offloaded(model)
    shape = model_shape(model)
    before, after = layer_shapes(model.config, plan)
    config = MoreauPrunerConfig.from_dict(plan.config)
    hidden, scope = model.config.hidden_size, shape.in_scope(config)
    plan = replace(plan, contributions=contributions(plan, shape))  # it may have been edited by hand
    base_card = read_base_card(model.config.name_or_path, plan.revision)
    recorded = _base_on_record(model)[0]
    if recorded is not None and plan.removes and not hasattr(model, BASE_PARAMETERS):
        setattr(model, BASE_PARAMETERS, recorded)  # not the count of what it was cut to
    export, compensation = _apply(model, shape, plan, text, config)
    after_shape = model_shape(model)
    if biases := after_shape.parameters - (shape.parameters - sum(plan.contributions.values())):
        plan = replace(plan, adjustments=(*plan.adjustments, f"the intercept adds {biases:,} biases to what is left"))
    summary = PruningSummary(
        base_model=plan.base_model,
        criterion=config.decided_by,
        parameters_before=shape.parameters,
        parameters_after=after_shape.parameters,  # an intercept adds biases
        bytes_before=shape.bytes,
        bytes_after=after_shape.bytes,
        dtype=str(model.dtype).removeprefix("torch."),
        ratio_requested=config.pruning_ratio,
        ratio_achieved=(shape.parameters - after_shape.parameters) / shape.parameters,
        unit_ratio_requested=config.unit_ratio,
        unit_ratio_achieved=removed_unit_share(plan, scope),
        export=export,
        layers_before=before,
        layers_after=after,
        hidden_before=hidden,
        hidden_after=model.config.hidden_size,
        contributions=plan.contributions,
        adjustments=plan.adjustments,
        calibration=dict(plan.calibration),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
        base_card=base_card,
        versions=versions(),
        compensation=compensation,
    )
    return PruningResult(summary, plan, scores)


def warn_of_pruned(model: PreTrainedModel) -> None:
    """Says so where units of a model went before: what goes now goes from what they left."""
    before, base = _base_on_record(model)
    before = getattr(model, BASE_PARAMETERS, before)
    if before is None:
        return
    now = sum(parameter.numel() for parameter in model.parameters())
    name = repr(base) if base else "the base"
    logger.warning(
        "the model was pruned before, from %s parameters to %s, and what goes now goes from these; to start from the"
        " base again, load it anew: AutoModelForCausalLM.from_pretrained(%s)",
        f"{before:,}",
        f"{now:,}",
        name,
    )


def _base_on_record(model: PreTrainedModel) -> tuple[int | None, str]:
    """The parameters and the name of the base of a model that was loaded from a pruned folder; else its own name."""
    name = str(model.config.name_or_path or "")
    try:
        found = read_json(Path(name) / SUMMARY_NAME, "a pruning summary") if name else {}
    except CheckpointError:  # it has no such record
        return None, name
    if not isinstance(found, dict) or type(before := found.get("parameters_before")) is not int:
        return None, name
    units_went = found.get("contributions") != {}  # a mask's summary has none
    return (before, str(found.get("base_model") or "")) if units_went else (None, name)


def _apply(
    model: PreTrainedModel,
    shape: ModelShape,
    plan: PruningPlan,
    text: CalibrationSet | None,
    config: MoreauPrunerConfig,
) -> tuple[str, dict[str, Any]]:
    """Cuts; returns the export taken, and what the compensation did."""
    if text is None:
        return apply_plan(model, plan), {}
    plan.check_matches(model, shape)
    check_compensation(model, shape, config)
    decide_export(model.config, shape, plan, config.export)  # what cannot be is refused before any pass
    check_loadable(model.config, shape, plan, config.export)
    advice = "compensation: too little memory; give fewer compensation_samples or a smaller batch_size"
    fitted = compensated(model, shape, plan, text.tokens, config, distinct=text.distinct)
    with as_reloaded(model, undone=False), out_of_memory(lambda: advice), fitted as adjusted:
        export = apply_plan(model, replace(plan, fingerprint=None))  # checked above; now its weights are others
    return export, described(config, text, adjusted)


@contextmanager
def out_of_memory(words: Callable[[], str]) -> Iterator[None]:
    """Says what to do where memory does not suffice: torch says so by a type on GPUs, and by words on a CPU.

    Raises:
        OutOfMemoryError: with these words.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise OutOfMemoryError(words()) from error
        raise
