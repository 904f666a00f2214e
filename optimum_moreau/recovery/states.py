"""The Trainer's states in a work folder: which of them a run can go on from."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainerState

from ..errors import CheckpointError, first_line
from ..files import filled, read_json, read_tensors

logger = logging.getLogger(__name__)

STATE, ADAPTER = "trainer_state.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class _Read:
    """The fields of a TrainerState that a run goes on from, and their types; what else stands there nobody reads."""

    global_step: int
    max_steps: int
    logging_steps: int
    save_steps: int
    train_batch_size: int
    log_history: tuple[Mapping[str, float], ...]
    stateful_callbacks: Mapping[str, Mapping[str, Any] | list[Mapping[str, Any]]]
    eval_steps: int | None = None
    epoch: float | None = None
    num_input_tokens_seen: int = 0
    total_flos: float = 0
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None


def read_state(folder: Path) -> TrainerState:
    """Reads the Trainer's state of a folder `checkpoint-STEP`.

    Raises:
        CheckpointError: it is missing or damaged: a field of another type, steps that are not the folder's, or a best
            state that is not this run's, or is damaged itself.
    """
    file = folder / STATE
    values = read_json(file, what := "the Trainer's state")
    known = {one.name for one in fields(_Read)}
    read = {key: value for key, value in values.items() if key in known} if isinstance(values, dict) else values
    found = filled(_Read, read, file, what)
    refused = f"{file}: cannot be read as {what}"
    for name in ("max_steps", "logging_steps", "save_steps", "train_batch_size", "eval_steps"):
        if (value := getattr(found, name)) is not None and value < 1:
            raise CheckpointError(f"{refused}: {name} {value} is not a whole number ≥ 1")
    if folder.name != f"checkpoint-{found.global_step}":
        raise CheckpointError(f"{refused}: global_step {found.global_step} is not its folder's")
    if "TrainerControl" not in found.stateful_callbacks:
        raise CheckpointError(f"{refused}: stateful_callbacks has no TrainerControl")
    best = Path(found.best_model_checkpoint) if found.best_model_checkpoint is not None else None
    if best is not None and best.is_dir():  # one that is gone the Trainer leaves out
        if best.resolve().parent != folder.resolve().parent:
            raise CheckpointError(f"{refused}: its best state lies elsewhere ({best})")
        read_tensors(best / ADAPTER, "the adapter of the best state")
    try:
        return TrainerState(**values)
    except TypeError as error:
        raise CheckpointError(f"{refused}: {first_line(error)}") from error


def last_state(work: Path) -> Path | None:
    """The last state that was written to its end: the Trainer writes trainer_state.json last."""
    found = []
    for folder in work.glob("checkpoint-*"):
        step = folder.name.rpartition("-")[2]
        if step.isdecimal():
            found.append((int(step), folder))
    return next((folder for _, folder in sorted(found, reverse=True) if _is_whole(folder)), None)


def _is_whole(folder: Path) -> bool:
    """Whether a state can be gone on from: one that was killed while it was written, or damaged, cannot."""
    try:
        read_state(folder)
        read_tensors(folder / ADAPTER, "the adapter of a state")
        archives = [file for file in folder.iterdir() if file.suffix in (".pt", ".pth")]
        if damaged := next((file.name for file in archives if zipfile.ZipFile(file).testzip() is not None), None):
            raise CheckpointError(f"{damaged} is damaged")
    except (CheckpointError, OSError, zipfile.BadZipFile) as error:
        logger.warning("%s: cannot be gone on from (%s); the state before it is taken", folder.name, first_line(error))
        return False
    return True
