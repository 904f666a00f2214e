"""The model card of a pruned model, from MODEL_CARD_TEMPLATE.md."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

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
    criterion = CRITERIA.get(summary.criterion)
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
        criterion=criterion,
        settings={key: value for key, value in plan.config.items() if value is not None},
        layers=list(zip(summary.layers_before, summary.layers_after, strict=True)),
        removed_words=_removed_words(summary),
        own_type=summary.export.startswith(CUSTOM_PREFIX),
        title=f"{plan.base_model or summary.export}, pruned",
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def _removed_words(summary: PruningSummary) -> str:
    nouns = [_NOUNS[kind] for kind in summary.contributions] or ["no units"]
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
