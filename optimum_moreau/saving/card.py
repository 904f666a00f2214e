"""The model card of a pruned model, from MODEL_CARD_TEMPLATE.md.

A template is given plain values (texts, numbers, lists, dictionaries). Every text that comes from a file (plan,
summary, measurements, the base's card) is escaped: nothing of it is Markdown. What this package wrote itself is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, hf_hub_download
from jinja2 import TemplateError

from ..config import MoreauPrunerConfig
from ..config.methods import shown, shown_names
from ..config.quantities import words_for_bytes
from ..criteria import block_influence
from ..criteria.papers import BIBTEX
from ..errors import CheckpointError, first_line, quiet
from ..evaluation.records import CALIBRATED_ALONE, STAGES, Measurement, by_stage, is_of_calibration_alone
from ..evaluation.speed import Speed
from ..files import read_text, write_text
from ..masks import REFINEMENTS
from ..masks.summary import SparsitySummary
from ..models.families import CUSTOM_PREFIX
from ..planning import PruningPlan
from ..recovery import RecoverySummary
from ..registry import COMPENSATIONS, suggestion
from ..templates import LITERAL, names_of_foreign, parse_card, render, render_foreign
from ..templates.foreign import ForeignTemplateError
from ..templates.sandbox import OF_DICTIONARIES, one_line
from .summary import PruningSummary

TAGS = ["optimum-moreau", "pruned", "structured-pruning"]
_OF_EVERY_CARD: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
_LONGEST_TEMPLATE = 2**18  # bytes
_OF_BASE_CARD = ("license", "license_name", "license_link", "language")
_METADATA = (*_OF_BASE_CARD, "base_model", "base_model_relation", "datasets", "library_name", "pipeline_tag", "tags")
_LONGEST_TEXT, _MOST_TEXTS = 200, 200
# What a template is given where nothing is known yet.
_SAMPLE: dict[str, Any] = {
    "card_data": LITERAL("license: mit"),
    "title": "a model, pruned",
    "summary": {},
    "settings": {},
    "evaluation_note": "",
    **dict.fromkeys(("criteria", "budgets", "layers", "citations", "evaluation", "stages", "unused"), ()),
}
_NOUNS = {
    "layers": "whole layers",
    "hidden": "channels of the residual stream",
    "attention": "attention heads (whole KV groups under grouped-query attention)",
    "mlp": "MLP channels",
}
_UNITS = {"layers": "layers", "hidden": "hidden channels", "attention": "KV groups", "mlp": "MLP channels"}
_OF_SPEED = ("verdict", "device", "how", "shape_notes")
_OF_SPARSITY = ("achieved", "of_model", "holds", "gains")  # computed


def template_path() -> Path:
    """Returns the template that ships."""
    return Path(__file__).parent / "MODEL_CARD_TEMPLATE.md"


def write_card(
    folder: str | Path,
    summary: PruningSummary,
    plan: PruningPlan,
    *,
    recovery: RecoverySummary | None = None,
    measurements: Sequence[Measurement] = (),
    speed: Speed | None = None,
    sparsity: SparsitySummary | None = None,
    template: str | Path | None = None,
) -> Path:
    """Writes README.md into a pruned model's folder; returns the file.

    Args:
        folder: the model's folder.
        summary: of the run.
        plan: of the run.
        recovery: what was tuned afterwards, if anything.
        measurements: before pruning and after.
        speed: of the model beside its base.
        sparsity: what was masked, if single weights were.
        template: instead of the one that ships (jinja2).

    Raises:
        CheckpointError: the template is missing, or is not one.
    """
    config = MoreauPrunerConfig.from_dict(plan.config)
    title = one_line(f"{plan.base_model or summary.export}, pruned")
    results = _results_of(measurements)
    on_hub = plan.base_model if "/" in (plan.base_model or "") else None
    sources = [summary.calibration.get("source"), recovery and recovery.data["source"]]
    datasets = [source.split(":")[1] for source in sources if source and source.startswith("hub:")]
    data = ModelCardData(
        **of_base_card(summary.base_card),
        **_OF_EVERY_CARD,
        datasets=list(dict.fromkeys(datasets)) or None,
        base_model=on_hub,
        base_model_relation="finetune" if on_hub else None,
        model_name=title if results else None,
        eval_results=results or None,
        tags=[tag for tag in TAGS if sparsity is None or not tag.startswith("structured")],
    )
    values = {"title": title, **_values(config, summary, recovery, measurements, speed, sparsity)}
    path = Path(folder) / "README.md"
    write_text(path, _render(data, template, values))
    return path


def read_base_card(name: str | None, revision: str | None = None) -> dict[str, Any]:
    """Licence and language from the card of a base model, by folder or Hub id; nothing where none is named."""
    if not name:
        return {}
    folder = Path(name).expanduser()
    try:
        with quiet("huggingface_hub"):
            card = folder / "README.md" if folder.is_dir() else hf_hub_download(name, "README.md", revision=revision)
            found = parse_card(read_text(card, "a model card")).data.to_dict()
    except (OSError, ValueError):  # no card, no network, not a card
        return {}
    return of_base_card(found)


def of_base_card(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is taken over of a base model's card: licence and language, one short text or a few of them."""
    taken = {}
    for key in _OF_BASE_CARD:
        value = found.get(key)
        texts = value if isinstance(value, list) else [value]
        if texts and len(texts) <= _MOST_TEXTS and all(isinstance(text, str) and text.strip() for text in texts):
            short = [one_line(text).strip()[:_LONGEST_TEXT] for text in texts]
            taken[key] = short if isinstance(value, list) else short[0]
    return taken


def check_template(path: str | Path | None) -> None:
    """Refuses (CheckpointError) a card template that is missing, or cannot be used; `None` is the one that ships."""
    if path is None:
        return
    name, source = _source(path)
    try:
        _refuse_strangers(names_of_foreign(source))
        render_foreign(source, _SAMPLE)
    except ForeignTemplateError as error:
        if not error.incomplete:  # what a sample lacks, the values of a run may hold
            raise _unusable(name, error) from error


def _known() -> dict[str, set[str]]:
    """What a template may be given, and the keys of what has the same keys wherever it is given."""
    given = (*_METADATA, *_SAMPLE, "removed_words", "own_type")
    return {name: set[str]() for name in given} | {
        "summary": _fields(PruningSummary),
        "recovery": _fields(RecoverySummary),
        "settings": shown_names(),
        "speed": {"baseline", "rows", *_OF_SPEED},
        "sparsity": {"by_layer", *_OF_SPARSITY} | _fields(SparsitySummary),
        "unit_names": {*_UNITS},
    }


def _fields(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def _refuse_strangers(used: Sequence[Sequence[str]]) -> None:
    """Refuses names, and keys after them, that no card holds."""
    known = _known()
    for name, *keys in used:
        if name not in known or (keys and known[name] and keys[0] not in {*known[name], *OF_DICTIONARIES}):
            words = f"{name}.{keys[0]}" if name in known else name
            every = [*known, *(f"{one}.{key}" for one in known for key in known[one])]
            raise ForeignTemplateError(f"no card holds '{words}'.{suggestion(words, every)}".rstrip("."))


def _render(data: ModelCardData, template: str | Path | None, values: dict[str, Any]) -> str:
    name, source = _source(template_path() if template is None else template)
    values = {**data.to_dict(), **values, "card_data": LITERAL(data.to_yaml())}
    try:
        card = parse_card((render if template is None else render_foreign)(source, values))
    except (TemplateError, ForeignTemplateError, ValueError) as error:
        raise _unusable(name, error) from error
    card.text = card.text.rstrip() + "\n"
    return str(card)


def _source(template: str | Path) -> tuple[str, str]:
    """The name and the text of a template's file."""
    file = Path(template).expanduser()
    if not file.is_file():
        raise CheckpointError(f"{file.name}: no such card template")
    return file.name, read_text(file, "a card template", most=_LONGEST_TEMPLATE)


def _unusable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{name}: cannot be used as a card template ({first_line(error)})")


def _values(
    config: MoreauPrunerConfig,
    summary: PruningSummary,
    recovery: RecoverySummary | None,
    measurements: Sequence[Measurement],
    speed: Speed | None,
    sparsity: SparsitySummary | None,
) -> dict[str, Any]:
    """All but the title; arguments as for `write_card`. What this package says itself is Markdown as it stands."""
    criteria, budget = _criteria(config), config.budget
    # none where all layers gave alike
    budgets = [(budget.name, budget.summary, budget.paper)] if budget.name != "uniform" else []
    papers = [*(paper for _, _, paper in (*criteria, *budgets)), summary.compensation.get("paper", "")]
    stages = {one.stage for one in measurements}
    found = summary.to_dict() | {"base_card": of_base_card(summary.base_card)}
    step, words = (str(summary.compensation.get(key)) for key in ("step", "summary"))
    if step in COMPENSATIONS and words == COMPENSATIONS.get(step).summary:
        found["compensation"]["summary"] = LITERAL(words)
    return {
        "summary": found,
        "recovery": None if recovery is None else recovery.to_dict(),
        "unused": _unused(recovery),
        "criteria": [[LITERAL(text) for text in row] for row in criteria],
        "budgets": [[LITERAL(text) for text in row] for row in budgets],
        "citations": [LITERAL(BIBTEX[paper]) for paper in dict.fromkeys(papers) if paper in BIBTEX],
        "settings": {key: _words(key, value) for key, value in shown(config).items()},
        "layers": list(zip(summary.layers_before, summary.layers_after, strict=True)),
        "unit_names": _UNITS,
        "removed_words": _removed_words(summary),
        "own_type": summary.export.startswith(CUSTOM_PREFIX),
        "evaluation": _evaluation(measurements, summary.fitted_to),
        "evaluation_note": CALIBRATED_ALONE if is_of_calibration_alone(measurements, summary.fitted_to) else "",
        "speed": _speed(speed),
        "sparsity": _sparsity(sparsity),
        "stages": [stage for stage in STAGES if stage in stages],
    }


def _evaluation(
    measurements: Sequence[Measurement], calibration: Mapping[str, Any]
) -> list[tuple[Any, dict[str, Any]]]:
    """Each figure: its dataset, metric, protocol and whether that is the calibration text; and its value by stage."""
    found = []
    for what, values in by_stage(measurements).items():
        last = [*values.values()][-1]
        stages = {stage: {**asdict(one), "words": one.words} for stage, one in values.items()}
        found.append(((*what, last.likeness(calibration)), stages))
    return found


def _results_of(measurements: Sequence[Measurement]) -> list[EvalResult]:
    """What the card's metadata says was measured of this model: the last stage of each figure."""
    found = []
    for (dataset, metric, protocol), values in by_stage(measurements).items():
        if last := values.get("recovered") or values.get("pruned"):
            found.append(
                EvalResult(
                    task_type="text-generation" if metric == "perplexity" else "multiple-choice",
                    dataset_type="text" if metric == "perplexity" else dataset,
                    dataset_name=dataset,
                    metric_type="accuracy" if metric in ("acc", "acc_norm") else metric,
                    metric_name=f"{metric}, {protocol}",
                    metric_value=round(last.value, 4),
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
    if speed is None or speed.baseline is None:
        return None
    found = {"baseline": {"name": speed.baseline.name}, "rows": [{"cells": row.cells} for row in speed.rows]}
    return found | {name: getattr(speed, name) for name in _OF_SPEED}


def _sparsity(sparsity: SparsitySummary | None) -> dict[str, Any] | None:
    if sparsity is None:
        return None
    found = asdict(sparsity) | {name: getattr(sparsity, name) for name in _OF_SPARSITY}
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
        how = REFINEMENTS[refine]
        found.append((f"{refine}, a refinement of the mask", how.summary, how.paper))
    return found


def _words(key: str, value: Any) -> str:
    if key.endswith("_layers"):
        return f"{value[0]}:{value[1]} (end excluded)"
    if key == "target_bytes":
        return words_for_bytes(value)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _removed_words(summary: PruningSummary) -> str:
    *most, last = [_NOUNS[kind] for kind in summary.contributions] or ["no units"]
    return f"{', '.join(most)} and {last}" if most else last
