"""What is done to a model in place, and the record of it: units are compensated for and cut, or weights masked."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from ..compensation.compensate import compensated, described
from ..compensation.kept import KeptLayers
from ..errors import PlanError
from ..masks.sparsify import sparsify
from ..masks.summary import SparsitySummary
from ..models.buffers import as_reloaded
from ..models.memory import out_of_memory, peak_memory_bytes
from ..models.placement import input_device, prepare_offloaded
from ..models.units import size_of
from ..planning import PruningPlan, contributions, removed_unit_share, whole_plan
from ..saving.card import read_base_card
from ..saving.summary import PruningSummary, versions
from ..scoring.scores import UnitScores
from ..surgery.apply import BASE_PARAMETERS, cut_in_place
from ..surgery.export import Export, check_loadable, decide_export, layer_shapes
from .made import ElementScores
from .run import Run
from .scoring import planned, say_estimate
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


def pruned(run: Run) -> PruningResult:
    """In place: removes the least important units, or masks single weights; on an error the model is as it was.

    Args:
        run: of the base model.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    if run.config.masks:
        return _mask(run)
    made = planned(run)
    if made.scores is run.made:
        made.plan.check_matches(run.model, run.shape)
    return _cut(run, made.plan, made.export, made.scores)


def applied(run: Run, plan: PruningPlan) -> PruningResult:
    """In place: applies a plan that was made before, and compensates for what goes; errors as for `pruned`."""
    plan = replace(plan, config=run.config.to_dict())
    return _cut(run, plan, decide_export(run.model.config, run.shape, plan, run.config.export))


def _cut(run: Run, plan: PruningPlan, export: Export, scores: UnitScores | None = None) -> PruningResult:
    """Compensates and cuts; before anything is cut an error leaves all as it was."""
    model, shape = run.model, run.shape
    prepare_offloaded(model)  # scoring went through its hooks
    layers, hidden = layer_shapes(model.config, plan), model.config.hidden_size
    plan = replace(plan, contributions=contributions(plan, shape))  # it may have been edited by hand
    base_card = read_base_card(model.config.name_or_path, plan.revision)
    check_loadable(model.config, shape, plan, export)  # what cannot be is refused before any pass
    recorded = base_on_record(model)[0]
    if recorded is not None and plan.removes and not hasattr(model, BASE_PARAMETERS):
        setattr(model, BASE_PARAMETERS, recorded)  # not the count of what it was cut to
    compensation = _apply(run, plan, export)
    after = size_of(model)
    if biases := after[0] - (shape.parameters - sum(plan.contributions.values())):
        plan = replace(plan, adjustments=(*plan.adjustments, f"the intercept adds {biases:,} biases to what is left"))
    summary = PruningSummary(
        parameters_before=shape.parameters,
        parameters_after=after[0],  # an intercept adds biases
        bytes_before=shape.bytes,
        bytes_after=after[1],
        ratio_achieved=(shape.parameters - after[0]) / shape.parameters,
        **_decided(run, plan),
        dtype=str(model.dtype).removeprefix("torch."),
        export=export.model_type,
        layers_before=layers[0],
        layers_after=layers[1],
        hidden_before=hidden,
        hidden_after=model.config.hidden_size,
        seconds=time.perf_counter() - run.started,
        peak_memory_bytes=peak_memory_bytes(),
        base_card=base_card,
        versions=versions(),
        compensation=compensation,
    )
    return PruningResult(summary, plan, scores)


def _mask(run: Run) -> PruningResult:
    """Sets weights to zero by the config's pattern; the plan on record keeps every unit."""
    model, config = run.model, run.config
    plan = replace(whole_plan(run.shape), **run.origin())
    export = decide_export(model.config, run.shape, plan, config.export)
    check_loadable(model.config, run.shape, plan, export)  # what cannot be is refused before any zero
    elements = None
    if isinstance(run.made, ElementScores):
        if run.made.origin.get("fingerprint") != plan.fingerprint:
            raise PlanError("scores: are of another model, whose weights differ; score this one")
        elements = run.made.values
    say_estimate(run)
    advice = (
        f"masking by {config.criterion.name}: too little memory; give fewer calibration_samples or a smaller batch_size"
    )
    with as_reloaded(model), out_of_memory(lambda: advice):
        sparsity = sparsify(model, run.shape, run.tokens, config, elements)
    return replace(_cut(run, plan, export), sparsity=sparsity)


def _decided(run: Run, plan: PruningPlan) -> dict[str, Any]:
    """What a summary says of the plan: what was asked for, what decided, and what goes."""
    return {
        "base_model": plan.base_model,
        "criterion": run.config.decided_by,
        "ratio_requested": run.config.pruning_ratio,
        "unit_ratio_requested": run.config.unit_ratio,
        "unit_ratio_achieved": removed_unit_share(plan, run.shape.in_scope(run.config)),
        "contributions": plan.contributions,
        "adjustments": plan.adjustments,
        "calibration": dict(plan.calibration),
    }


def _apply(run: Run, plan: PruningPlan, export: Export) -> dict[str, Any]:
    """Cuts; returns what the compensation did."""
    if run.fitted is None:
        cut_in_place(run.model, run.shape, plan, export)
        return {}
    model, config, text = run.model, run.config, run.fitted
    advice = (
        "compensation: too little memory; give fewer windows (--compensation-args windows=N) or a smaller batch_size"
    )
    where = {"dtype": str(model.dtype), "device": input_device(model).type, "versions": versions()}
    kept = KeptLayers(run.checkpoint, plan=plan.to_dict(), text=text.to_dict(), **where)
    fitted = compensated(model, run.shape, plan, run.parts, config, distinct=text.distinct, kept=kept)
    with as_reloaded(model, undone=False), out_of_memory(lambda: advice), fitted as done:
        cut_in_place(model, run.shape, plan, export)
    return described(config, text, done)
