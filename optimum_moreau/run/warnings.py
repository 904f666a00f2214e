"""What a run warns of: a model that was pruned or masked before, and a plan that was made on another text."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..compensation import Compensation
from ..data.windows import CalibrationText
from ..errors import CheckpointError, DataError
from ..files import read_json
from ..masks.summary import SPARSITY_NAME, SparsitySummary
from ..planning import PruningPlan
from ..saving.summary import SUMMARY_NAME
from ..surgery.apply import BASE_PARAMETERS
from .run import Run

if TYPE_CHECKING:
    from .cutting import PruningResult

logger = logging.getLogger(__name__)


def warn_of_earlier(run: Run, known: PruningResult | None) -> None:
    """Of a model that was pruned or masked before: by the record of its folder, or by what is known of it.

    Args:
        run: of the model.
        known: its result, if it was pruned in this process.
    """
    model, masks = run.model, run.config.masks
    own = known.sparsity if known else None
    if not masks:
        warn_of_pruned(model)
    warn_of_mask(own.pattern if own else mask_on_record(model), None if masks else run.config.compensation)


def warn_of_pruned(model: PreTrainedModel) -> None:
    """Says so where units of a model went before: what goes now goes from what they left."""
    before, base = base_on_record(model)
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


def base_on_record(model: PreTrainedModel) -> tuple[int | None, str]:
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


def mask_on_record(model: PreTrainedModel) -> str | None:
    """The pattern of the mask that a model has by the record of its folder; `None`: none."""
    if not model.config.name_or_path:
        return None
    try:
        return SparsitySummary.load(Path(model.config.name_or_path).expanduser() / SPARSITY_NAME).pattern
    except CheckpointError:  # it has no such record
        return None


def warn_of_mask(pattern: str | None, compensation: Compensation | None) -> None:
    """Says what becomes of the zeros of a model that was masked before.

    Args:
        pattern: of that mask; `None`: there is none.
        compensation: for the units that go; `None`: the model is to be masked again.
    """
    if not pattern:
        return
    if compensation is None:
        logger.warning(
            "the model was masked (%s) already: weights that are zero stay so; mask its dense base instead",
            pattern,
        )
        return
    zeros = "its zeros stay in the weights that remain"
    if not compensation.keeps_zeros:
        zeros = f"'{compensation.name}' fills those of o_proj and down_proj; its other zeros stay in what remains"
    logger.warning(
        "the model was masked (%s): %s, but the pattern need not hold any more, and the result keeps no record of it",
        pattern,
        zeros,
    )


def warn_of_other_text(text: CalibrationText, plan: PruningPlan) -> None:
    """Where the windows that were scored on, drawn again, are others; of a plan without text nothing is known."""
    drawn = plan.calibration
    if not {"samples", "sequence_length", "seed", "sha256"} <= set(drawn):
        return
    try:
        digest = text.windows(drawn["samples"], drawn["sequence_length"], drawn["seed"]).sha256
    except DataError:  # too short for those windows
        digest = ""
    if digest != drawn["sha256"]:
        logger.warning(
            "compensation reads another text than the plan was scored on (%s); the summary records both",
            drawn.get("source", "no name"),
        )
