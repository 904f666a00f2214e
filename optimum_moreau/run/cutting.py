"""What is done to a model in place, and the record of it: units are compensated for and cut."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from ..compensation.compensate import check_compensation, compensated, described
from ..config import MoreauPrunerConfig
from ..data.windows import CalibrationSet
from ..masks.summary import SparsitySummary
from ..models.buffers import as_reloaded
from ..models.memory import out_of_memory, peak_memory_bytes
from ..models.placement import prepare_offloaded
from ..models.units import Block, ModelShape, model_shape
from ..planning import PruningPlan, contributions, removed_unit_share
from ..saving.card import read_base_card
from ..saving.summary import PruningSummary, layer_shapes, versions
from ..scoring.scores import UnitScores
from ..surgery.apply import BASE_PARAMETERS, apply_plan
from ..surgery.export import check_loadable, decide_export
from .warnings import base_on_record


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

    def __repr__(self) -> str:
        """What was done, in one line."""
        before, after = self.summary.parameters_before, self.summary.parameters_after
        zeros = f", {100 * self.sparsity.achieved:.1f} % zeros in scope" if self.sparsity else ""
        return (
            f"PruningResult({self.summary.criterion}: {before:,} → {after:,} parameters{zeros}, {self.summary.export})"
        )


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
    layers, hidden = layer_shapes(model.config, plan), model.config.hidden_size
    config = MoreauPrunerConfig.from_dict(plan.config)
    scope = shape.in_scope(config)
    plan = replace(plan, contributions=contributions(plan, shape))  # it may have been edited by hand
    base_card = read_base_card(model.config.name_or_path, plan.revision)
    recorded = base_on_record(model)[0]
    if recorded is not None and plan.removes and not hasattr(model, BASE_PARAMETERS):
        setattr(model, BASE_PARAMETERS, recorded)  # not the count of what it was cut to
    export, compensation = _apply(model, shape, plan, text, config)
    after_shape = model_shape(model)
    if biases := after_shape.parameters - (shape.parameters - sum(plan.contributions.values())):
        plan = replace(plan, adjustments=(*plan.adjustments, f"the intercept adds {biases:,} biases to what is left"))
    summary = PruningSummary(
        **_sizes(shape, after_shape),
        **_decided(plan, config, scope),
        dtype=str(model.dtype).removeprefix("torch."),
        export=export,
        layers_before=layers[0],
        layers_after=layers[1],
        hidden_before=hidden,
        hidden_after=model.config.hidden_size,
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
        base_card=base_card,
        versions=versions(),
        compensation=compensation,
    )
    return PruningResult(summary, plan, scores)


def _sizes(before: ModelShape, after: ModelShape) -> dict[str, Any]:
    """What a summary says of sizes."""
    return {
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,  # an intercept adds biases
        "bytes_before": before.bytes,
        "bytes_after": after.bytes,
        "ratio_achieved": (before.parameters - after.parameters) / before.parameters,
    }


def _decided(plan: PruningPlan, config: MoreauPrunerConfig, scope: Sequence[Block]) -> dict[str, Any]:
    """What a summary says of the plan: what was asked for, what decided, and what goes."""
    return {
        "base_model": plan.base_model,
        "criterion": config.decided_by,
        "ratio_requested": config.pruning_ratio,
        "unit_ratio_requested": config.unit_ratio,
        "unit_ratio_achieved": removed_unit_share(plan, scope),
        "contributions": plan.contributions,
        "adjustments": plan.adjustments,
        "calibration": dict(plan.calibration),
    }


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
