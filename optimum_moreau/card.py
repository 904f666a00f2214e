"""The model card of a pruned model, from MODEL_CARD_TEMPLATE.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .config import MoreauPrunerConfig
from .config.quantities import words_for_bytes
from .criteria import block_influence
from .families import CUSTOM_PREFIX
from .plan import PruningPlan
from .registry import CRITERIA
from .summary import PruningSummary

_NOUNS = {
    "layers": "whole layers",
    "hidden": "channels of the residual stream",
    "attention": "attention heads (whole KV groups under grouped-query attention)",
    "mlp": "MLP channels",
}
_UNITS = {"layers": "layers", "hidden": "hidden channels", "attention": "KV groups", "mlp": "MLP channels"}
TAGS = ["optimum-moreau", "pruned", "structured-pruning"]
_TEMPLATE = "MODEL_CARD_TEMPLATE.md"


def template_path() -> Path:
    """Returns the packaged template, or the repository's in an editable installation."""
    packaged = Path(__file__).parent / _TEMPLATE
    return packaged if packaged.is_file() else Path(__file__).parents[1] / _TEMPLATE


def write_card(folder: str | Path, summary: PruningSummary, plan: PruningPlan) -> Path:
    """Writes README.md into a pruned model's folder; returns the file.

    Args:
        folder: the model's folder.
        summary: of the run.
        plan: of the run.
    """
    config = MoreauPrunerConfig.from_dict(plan.config)
    is_hub_id = plan.base_model is not None and "/" in plan.base_model
    data = ModelCardData(
        base_model=plan.base_model if is_hub_id else None,
        base_model_relation="finetune" if is_hub_id else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template_path()),
        summary=summary,
        criteria=_criteria(config),
        settings={key: _words(key, value) for key, value in plan.config.items() if value is not None},
        layers=list(zip(summary.layers_before, summary.layers_after, strict=True)),
        unit_names=_UNITS,
        removed_words=_removed_words(summary),
        own_type=summary.export.startswith(CUSTOM_PREFIX),
        title=f"{plan.base_model or summary.export}, pruned",
    )
    path = Path(folder) / "README.md"
    card.text = card.text.rstrip() + "\n"
    card.save(path)
    return path


def _criteria(config: MoreauPrunerConfig) -> list[tuple[str, str, str]]:
    """Name, summary and source of what decided."""
    found = []
    if not config.by_influence_alone:
        criterion = CRITERIA.get(config.criterion)
        found.append((criterion.name, criterion.summary, criterion.paper))
    if config.layer_criterion == "block-influence":
        found.append(("block influence, of whole layers", block_influence.SUMMARY, block_influence.PAPER))
    return found


def _words(key: str, value: Any) -> str:
    if key.endswith("_layers"):
        return f"{value[0]}:{value[1]} (end excluded)"
    if key == "target_bytes":
        return words_for_bytes(value)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _removed_words(summary: PruningSummary) -> str:
    nouns = [_NOUNS[kind] for kind in summary.contributions] or ["no units"]
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
