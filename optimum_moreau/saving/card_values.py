"""The values that a model card's template is given: texts, numbers, lists, dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from huggingface_hub import EvalResult

from ..config import MoreauPrunerConfig
from ..config.methods import shown
from ..config.quantities import words_for_bytes
from ..criteria import block_influence
from ..criteria.papers import BIBTEX
from ..evaluation.records import STAGES, Measurement, by_stage
from ..evaluation.speed import Speed
from ..masks import REFINEMENTS
from ..masks.summary import SparsitySummary
from ..models.families import CUSTOM_PREFIX
from ..recovery import RecoverySummary
from ..registry import COMPENSATIONS
from ..templates import LITERAL
from .summary import PruningSummary

_NOUNS = {
    "layers": "whole layers",
    "hidden": "channels of the residual stream",
    "attention": "attention heads (whole KV groups under grouped-query attention)",
    "mlp": "MLP channels",
}
UNITS = {"layers": "layers", "hidden": "hidden channels", "attention": "KV groups", "mlp": "MLP channels"}
OF_SPEED = ("verdict", "device", "how", "shape_notes")
OF_SPARSITY = ("achieved", "of_model", "holds", "gains")  # computed


def card_values(
    config: MoreauPrunerConfig,
    summary: PruningSummary,
    recovery: RecoverySummary | None,
    measurements: Sequence[Measurement],
    speed: Speed | None,
    sparsity: SparsitySummary | None,
) -> dict[str, Any]:
    """All but the title and the summary; arguments as for `write_card`."""
    criteria, budgets = _criteria(config), _budgets(config)
    papers = [*(paper for _, _, paper in (*criteria, *budgets)), summary.compensation.get("paper", "")]
    return {
        "recovery": None if recovery is None else recovery.to_dict(),
        "unused": _unused(recovery),
        # words that this package holds, which are Markdown as they stand
        "criteria": [[LITERAL(text) for text in row] for row in criteria],
        "budgets": [[LITERAL(text) for text in row] for row in budgets],
        "citations": [LITERAL(BIBTEX[paper]) for paper in dict.fromkeys(papers) if paper in BIBTEX],
        "settings": {key: _words(key, value) for key, value in shown(config).items()},
        "layers": list(zip(summary.layers_before, summary.layers_after, strict=True)),
        "unit_names": UNITS,
        "removed_words": _removed_words(summary),
        "own_type": summary.export.startswith(CUSTOM_PREFIX),
        "evaluation": [
            (what, {stage: {**asdict(one), "words": one.words} for stage, one in values.items()})
            for what, values in by_stage(measurements).items()
        ],
        "speed": _speed(speed),
        "sparsity": _sparsity(sparsity),
        "stages": [stage for stage in STAGES if any(one.stage == stage for one in measurements)],
    }


def summary_values(summary: PruningSummary, base_card: dict[str, Any]) -> dict[str, Any]:
    """The summary; what this package says of a compensation is Markdown as it stands."""
    found = summary.to_dict() | {"base_card": base_card}
    step, words = (str(summary.compensation.get(key)) for key in ("step", "summary"))
    if step in COMPENSATIONS and words == COMPENSATIONS.get(step).summary:
        found["compensation"]["summary"] = LITERAL(words)
    return found


def origins(base_model: str | None, sources: Sequence[str | None]) -> dict[str, Any]:
    """What the metadata says of the base model and of the data, where they are on the Hub."""
    is_hub_id = base_model is not None and "/" in base_model
    datasets = [source.split(":")[1] for source in sources if source and source.startswith("hub:")]
    return {
        "datasets": list(dict.fromkeys(datasets)) or None,
        "base_model": base_model if is_hub_id else None,
        "base_model_relation": "finetune" if is_hub_id else None,
    }


def results_of(measurements: Sequence[Measurement]) -> list[EvalResult]:
    """What the card's metadata says was measured of this model: the last stage of each figure."""
    found = []
    for (dataset, metric, protocol), values in by_stage(measurements).items():
        stage = next((stage for stage in ("recovered", "pruned") if stage in values), None)
        if stage is not None:
            found.append(
                EvalResult(
                    task_type="text-generation" if metric == "perplexity" else "multiple-choice",
                    dataset_type="text" if metric == "perplexity" else dataset,
                    dataset_name=dataset,
                    metric_type="accuracy" if metric in ("acc", "acc_norm") else metric,
                    metric_name=f"{metric}, {protocol}",
                    metric_value=round(values[stage].value, 4),
                )
            )
    return found


def _unused(recovery: RecoverySummary | None) -> set[str]:
    """Settings of a recovery that had no part in it."""
    if recovery is None:
        return set()
    without_teacher = set() if recovery.teacher else {"temperature", "distillation"}
    return without_teacher | ({"epochs"} if recovery.settings.get("max_steps") else set())


def _speed(speed: Speed | None) -> dict[str, Any] | None:
    """What was measured of speed, beside the base; `None` where nothing was."""
    if speed is None or speed.baseline is None:
        return None
    found = {"baseline": {"name": speed.baseline.name}, "rows": [{"cells": row.cells} for row in speed.rows]}
    return found | {name: getattr(speed, name) for name in OF_SPEED}


def _sparsity(sparsity: SparsitySummary | None) -> dict[str, Any] | None:
    """What was masked; `None` where nothing was."""
    if sparsity is None:
        return None
    found = asdict(sparsity) | {name: getattr(sparsity, name) for name in OF_SPARSITY}
    return found | {"by_layer": dict(sparsity.by_layer())}


def _criteria(config: MoreauPrunerConfig) -> list[tuple[str, str, str]]:
    """Name, summary and source of what decided."""
    found = []
    if not config.by_influence_alone:
        criterion = config.criterion
        found.append((criterion.name, criterion.summary, criterion.paper))
    if config.criterion.layers == "block-influence":
        found.append(("block influence, of whole layers", block_influence.SUMMARY, block_influence.PAPER))
    if config.mask is not None and (refine := config.mask.refine):
        found.append((f"{refine}, a refinement of the mask", *REFINEMENTS[refine]))
    return found


def _budgets(config: MoreauPrunerConfig) -> list[tuple[str, str, str]]:
    """The same of what spread the units or zeros over layers; none where all gave alike."""
    return [(config.budget.name, config.budget.summary, config.budget.paper)] if config.budget.name != "uniform" else []


def _words(key: str, value: Any) -> str:
    if key.endswith("_layers"):
        return f"{value[0]}:{value[1]} (end excluded)"
    if key == "target_bytes":
        return words_for_bytes(value)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _removed_words(summary: PruningSummary) -> str:
    nouns = [_NOUNS[kind] for kind in summary.contributions] or ["no units"]
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
