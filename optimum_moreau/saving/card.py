"""The model card of a pruned model, from MODEL_CARD_TEMPLATE.md.

A template is given plain values (texts, numbers, lists, dictionaries). Every text that comes from a file (plan,
summary, measurements, the base's card) is escaped: nothing of it is Markdown. What this package wrote itself is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, hf_hub_download
from jinja2 import TemplateError

from ..config import MoreauPrunerConfig
from ..config.methods import shown_names
from ..errors import CheckpointError, first_line, quiet
from ..evaluation.records import Measurement
from ..evaluation.speed import Speed
from ..files import read_text, write_text
from ..masks.summary import SparsitySummary
from ..planning import PruningPlan
from ..recovery import RecoverySummary
from ..registry import suggestion
from ..templates import LITERAL, names_of_foreign, parse_card, render, render_foreign
from ..templates.foreign import ForeignTemplateError
from ..templates.markdown import one_line
from ..templates.sandbox import OF_DICTIONARIES
from .card_values import OF_SPARSITY, OF_SPEED, UNITS, card_values, origins, results_of, summary_values
from .summary import PruningSummary

TAGS = ["optimum-moreau", "pruned", "structured-pruning"]
_OF_EVERY_CARD: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
_TEMPLATE = "MODEL_CARD_TEMPLATE.md"
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
    **dict.fromkeys(("criteria", "budgets", "layers", "citations", "evaluation", "stages", "unused"), ()),
}


def template_path() -> Path:
    """Returns the template that ships."""
    return Path(__file__).parent / _TEMPLATE


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
    base_card = of_base_card(summary.base_card)
    results = results_of(measurements)
    source = None if recovery is None else recovery.data["source"]
    data = ModelCardData(
        **base_card,
        **origins(plan.base_model, [summary.calibration.get("source"), source]),
        **_OF_EVERY_CARD,
        model_name=title if results else None,
        eval_results=results or None,
        tags=[tag for tag in TAGS if sparsity is None or not tag.startswith("structured")],
    )
    values = card_values(config, summary, recovery, measurements, speed, sparsity)
    values |= {"title": title, "summary": summary_values(summary, base_card)}
    path = Path(folder) / "README.md"
    write_text(path, _render(data, template, values))
    return path


def read_base_card(name: str | None, revision: str | None = None) -> dict[str, Any]:
    """Licence and language from the card of a base model; nothing where there is none, or it names none.

    Args:
        name: folder or Hub id.
        revision: of the Hub repository.
    """
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
    """Refuses, before any work is done, a card template that cannot be used; `None` is the one that ships.

    Raises:
        CheckpointError: it is missing, is not one, or uses what no card holds.
    """
    if path is None:
        return
    name, source = _source(path)
    try:
        if stranger := _stranger(names_of_foreign(source)):
            raise ForeignTemplateError(stranger)
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
        "speed": {"baseline", "rows", *OF_SPEED},
        "sparsity": {"by_layer", *OF_SPARSITY} | _fields(SparsitySummary),
        "unit_names": {*UNITS},
    }


def _fields(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def _stranger(used: Sequence[Sequence[str]]) -> str:
    """What is wrong with the first of some names that no card holds; empty if there is none."""
    known = _known()
    for name, *keys in used:
        if name in known and not (keys and known[name] and keys[0] not in {*known[name], *OF_DICTIONARIES}):
            continue
        words = f"{name}.{keys[0]}" if name in known else name
        every = [*known, *(f"{one}.{key}" for one in known for key in known[one])]
        return f"no card holds '{words}'.{suggestion(words, every)}".rstrip(".")
    return ""


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
