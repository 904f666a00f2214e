"""Writes the report: one HTML page that holds everything it shows, for a browser without a network."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .. import __version__
from ..config import MoreauPrunerConfig
from ..config.methods import shown
from ..config.quantities import words_for_bytes
from ..evaluation.findings import FIGURES, INSIGHT_NAME, ROBUSTNESS_NAME, Insight, Robustness
from ..evaluation.records import STAGES
from ..files import write_text
from ..saving.records import Records
from .figures import draw_agreements, draw_insight, draw_map, inline_svg

Evidence = Robustness | Insight


@dataclass(frozen=True)
class Subject:
    """A pruned model that the page is about: the name of its folder, and what lies beside its weights."""

    name: str
    records: Records


@dataclass(frozen=True)
class Generation:
    """What several models write after one prompt: the name of each model, and its continuation."""

    prompt: str
    texts: Sequence[tuple[str, str]]


def load_evidence(folder: Path) -> list[Evidence]:
    """Reads what `robustness` and `insight` wrote into a folder; nothing if it holds none.

    Raises:
        CheckpointError: a file is damaged.
    """
    kinds: dict[str, type[Evidence]] = {ROBUSTNESS_NAME: Robustness, INSIGHT_NAME: Insight}
    return [kind.load(folder / name) for name, kind in kinds.items() if (folder / name).is_file()]


def write_report(
    path: Path, subjects: Sequence[Subject], evidence: Sequence[Evidence] = (), generations: Sequence[Generation] = ()
) -> None:
    """Writes the page.

    Args:
        path: the file.
        subjects: at least one pruned model.
        evidence: of their base models.
        generations: of the models, side by side.
    """
    columns = [_facts(subject.records) for subject in subjects]
    settings: Any = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), **settings)
    text = pages.get_template("page.html.j2").render(
        title=f"{subjects[0].name}, pruned" if len(subjects) == 1 else f"{len(subjects)} pruned models",
        subjects=[_subject(subject) for subject in subjects],
        facts=[(name, [column[name] for column in columns]) for name in columns[0]],
        unmeasured=[measuring(one.name, one.records) for one in subjects if not one.records.measurements],
        measured=_measured(subjects),
        evidence=[_evidence(one) for one in evidence],
        generations=generations,
        version=__version__,
    )
    write_text(path, text)


def measuring(folder: str, records: Records, base: str | None = None) -> str:
    """The command that measures the quality of the model in a folder, and of its base, for the card and this page."""
    recorded = records.summary.base_model or ""
    base = base or (recorded if "/" in recorded else "BASE")  # without a slash it is the name of a folder, somewhere
    return f"optimum-moreau evaluate {shlex.quote(folder)} --baseline {shlex.quote(base)} --text TEXT --save"


def _subject(subject: Subject) -> dict[str, Any]:
    """What the page says of one model."""
    records = subject.records
    summary, plan = records.summary, records.plan
    pairs = enumerate(zip(summary.layers_before, summary.layers_after, strict=True))
    layers = [
        {"index": index, **{kind: [before[kind], after and after[kind]] for kind in ("heads", "kv_heads", "channels")}}
        for index, (before, after) in pairs
    ]
    settings = shown(MoreauPrunerConfig.from_dict(plan.config)) if plan.config else {}  # none of a plan by hand
    words = {key: value if isinstance(value, (list, tuple)) else [value] for key, value in settings.items()}
    return {
        "name": subject.name,
        "summary": summary,
        "layers": layers,
        "map": inline_svg(draw_map({"": plan}, subject.name), f"Which units of each layer of {subject.name} stay"),
        "settings": {key: ", ".join(map(str, value)) for key, value in words.items()},
        "adjustments": plan.adjustments,
        "recovery": records.recovery.summary if records.recovery else None,
        "speed": records.speed,
    }


def _facts(records: Records) -> dict[str, str]:
    """A column of the first table: what was done to a model."""
    summary, sparsity = records.summary, records.sparsity
    left = [layer for layer in summary.layers_after if layer is not None]
    config = MoreauPrunerConfig.from_dict(records.plan.config) if records.plan.config else None
    zeros = "none masked"
    if sparsity is not None:
        zeros = f"{100 * sparsity.of_model:.1f} % of the parameters ({sparsity.pattern})"
    return {
        "base model": summary.base_model or "not recorded",
        "criterion": summary.criterion,
        "budget": config.budget.name if config else "not recorded",
        "units": ", ".join(records.plan.config.get("targets", ())) or "not recorded",
        "parameters": f"{summary.parameters_before:,} → {summary.parameters_after:,}",
        "removed": f"{100 * summary.ratio_achieved:.2f} %",
        "zeros": zeros,
        "weights": f"{words_for_bytes(summary.bytes_before)} → {words_for_bytes(summary.bytes_after)}, {summary.dtype}",
        "layers": f"{len(summary.layers_before)} → {len(left)}",
        "hidden channels": f"{summary.hidden_before:,} → {summary.hidden_after:,}",
        "loads as": summary.export,
        "pruning took": f"{summary.seconds:.1f} s",
        "compensation": summary.compensation.get("step", "none"),
        "tuned": "with LoRA" if records.recovery else "no",
    }


def _measured(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Rows of the second table: every figure, before and after, of each model; a text is known by its content."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for i, subject in enumerate(subjects):
        for one in subject.records.measurements:
            stages = found.setdefault((*one.what, one.sha256), [{} for _ in subjects])
            stages[i][one.stage] = one.words
    labels = [f"{metric}, {dataset} ({protocol})" for dataset, metric, protocol, _ in found]
    return [
        {
            "what": label if labels.count(label) == 1 else f"{label}, text {key[-1][:8] or 'without a hash'}",
            "values": [[(stage, stages[stage]) for stage in STAGES if stage in stages] for stages in found[key]],
        }
        for key, label in zip(found, labels, strict=True)
    ]


def _evidence(one: Evidence) -> dict[str, Any]:
    """What the page says of a base model."""
    found: dict[str, Any] = {"model": one.model, "robustness": None, "figures": []}
    if isinstance(one, Insight):
        for name, figure in draw_insight(one).items():
            words = FIGURES[name.partition("-")[0]]
            found["figures"].append({"words": words, "figure": inline_svg(figure, f"{one.model}: {words}")})
    elif one.agreements:
        label = f"Overlap of the units that plans of {one.model} keep and remove"
        found["robustness"] = {
            "figure": inline_svg(draw_agreements(one.agreements, one.model), label),
            "rows": one.agreements,
            "verdicts": one.verdicts,
            "measured": any(agreement.perplexity for agreement in one.agreements),
            "protocol": next((agreement.protocol for agreement in one.agreements if agreement.protocol), ""),
        }
    return found
