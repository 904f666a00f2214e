"""What the steps of a chain are made from: by which what was done before is recognised, and what is refused at once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .. import __version__
from ..data.sources import content_hash, dataset_commit
from ..data.windows import CalibrationText
from ..errors import CheckpointError
from ..loading import are_whole, base_revision, load_config, load_tokenizer, weight_files
from ..recovery import MoreauRecovery, check_fits
from ..run.measuring import EvaluationText
from ..saving.card import check_template
from ..saving.hub import check_access
from ..saving.summary import SUMMARY_NAME, PruningSummary
from ..scoring.scores import needs_text
from .recipe import Recipe


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Of each step that makes a folder: sha256 of all that decides what is in it."""
    found = {
        "prune": _digest(
            version=__version__,
            model=content_hash(recipe.model),
            revision=base_revision(recipe.model, recipe.revision),
            dtype=recipe.dtype,
            calibration=_identity(recipe.calibration),
            column=recipe.calibration_column,
            config=recipe.prune.to_dict(),
            **({"save_dtype": recipe.save_dtype} if recipe.save_dtype else {}),
        )
    }
    if recipe.recover:
        teacher = recipe.recover.teacher
        found["recover"] = _digest(
            pruned=found["prune"],
            data=_identity(recipe.recover.data),
            teacher=teacher and content_hash(teacher),
            teacher_revision=teacher and base_revision(teacher),
            config=recipe.recover.config.to_dict(),
        )
    return found


def _digest(**decides: Any) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _identity(text: str | None) -> str | None:
    """What a text's content is known by: its hash; for a dataset of the Hub its name and, where it is known, commit."""
    if text is None:
        return None
    commit = dataset_commit(text) if text.startswith("hub:") else None
    return f"{text}@{commit}" if commit else content_hash(text)


def made_from(folder: str, key: str) -> bool:
    """Whether a folder is whole and was made from the inputs that a key stands for."""
    path = Path(folder)
    try:
        made = PruningSummary.load(path / SUMMARY_NAME).inputs == key
        return made and are_whole(weight_files(path))
    except CheckpointError:  # there is none, or it is damaged
        return False


def check_same(folder: str, *, overwrite: bool) -> None:
    """Says of a model's folder that would be replaced, and may not be, that it is of other inputs."""
    if not overwrite and (Path(folder) / SUMMARY_NAME).is_file():
        raise CheckpointError(
            f"{folder}: holds a model made from other inputs (settings, texts, model or version), or one whose weights"
            " are damaged or missing; choose another folder, or replace it (--overwrite), which keeps the steps whose"
            " inputs are the same"
        )


def read_inputs(
    recipe: Recipe, config: Any, done: dict[str, bool], trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase, CalibrationText, EvaluationText | None]:
    """Reads what the steps need, each text once, and refuses what a later one would stumble over, before any is run."""
    check_template(recipe.card_template)
    tokenizer = load_tokenizer(recipe.model, revision=recipe.revision, trust_remote_code=trust_remote_code)
    evaluation = EvaluationText(recipe.evaluate, tokenizer, bos=recipe.bos) if recipe.evaluate else None
    if evaluation:
        evaluation.segments()
    if recipe.push:
        check_access(recipe.push.repo)
    calibration, c = CalibrationText(recipe.calibration, tokenizer, recipe.calibration_column), recipe.prune
    if not done["prune"] and recipe.calibration and needs_text(c):
        calibration.windows(c.calibration_samples, c.sequence_length, c.seed, vocab_size=config.vocab_size)
    if recipe.recover and not done["recover"]:
        teacher = recipe.recover.teacher
        of_teacher = load_config(teacher, trust_remote_code=trust_remote_code) if teacher else None
        check_fits(config, recipe.recover.config, of_teacher)
        MoreauRecovery(recipe.recover.config, tokenizer).read(recipe.recover.data)
    return tokenizer, calibration, evaluation
