"""Tunes what was pruned before, or merges an adapter into it, and saves it to another folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.records import perplexities
from ..loading import load_model
from ..pruner import MoreauPruner
from ..run.measuring import EvaluationText
from ..saving import check_folder, check_target, work_folder
from ..saving.card import check_template
from . import processes
from .recipe import RecoverStep


def tune(
    folder: str,
    step: RecoverStep | str,
    output: str,
    *,
    loading: Mapping[str, Any],
    saving: Mapping[str, Any],
    evaluate: str | EvaluationText | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Tunes the model of a folder, or merges an adapter into it, and saves it to another; returns what was done.

    Args:
        folder: of the pruned model.
        step: what to learn and how, or the folder of an adapter.
        output: folder to write.
        loading: keyword arguments of `load_model`.
        saving: keyword arguments of `save_pretrained`.
        evaluate: text to measure the perplexity on.
        work: folder of the training's states; removed when the model is saved. Default: beside the output.
    """
    check_target(output, overwrite=saving["overwrite"])
    if not isinstance(step, str):
        work = work or work_folder(output)
        check_folder(work)
    if processes.is_first():
        logging.getLogger("optimum_moreau.recovery.training").setLevel(logging.INFO)  # it says that it begins
    check_template(saving["card_template"])
    pruner = MoreauPruner.from_pretrained(folder, **loading)
    if isinstance(step, str):
        summary = pruner.merge_adapter(step)
    else:
        teacher = None if step.teacher is None else load_model(step.teacher, **loading)
        summary = pruner.recover(step.data, step.config, teacher=teacher, work_dir=work)
    if not processes.is_first():
        return {}
    if evaluate:
        pruner.evaluate(evaluate)
    verification = pruner.save_pretrained(output, **saving)
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    return {
        **summary.training,
        "trainable_parameters": summary.trainable_parameters,
        "data": dict(summary.data),
        **perplexities(pruner.measurements),
        "verified_max_abs_difference": verification.max_abs_difference,
        "output": output,
    }
