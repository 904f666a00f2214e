"""Training on transformers' Trainer: the loss, with or without a teacher, and runs that can be gone on with."""

from __future__ import annotations

import copy
import logging
import math
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from ..config.recovery import RecoveryConfig
from ..data.instructions import IGNORED, TrainingData
from ..errors import CheckpointError, ConfigError, MoreauError, NonFiniteError, first_line
from ..files import filled, read_json, read_tensors, write_json
from ..files.temporary import is_full, reason

logger = logging.getLogger(__name__)

_RUN, _STATE, _ADAPTER = "run.json", "trainer_state.json", "adapter_model.safetensors"
_FULL_DISK = ("PytorchStreamWriter", "No space left", "File too large", "quota exceeded")
_LOGGED = 10  # steps whose mean loss is one entry of the log


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T²·KL(p_T ‖ p_S), summed over the tokens with loss (Hinton et al. 2015, arXiv 1503.02531).

    p_T = softmax(teacher/T), p_S = softmax(student/T); the factor T² keeps the gradient's scale.

    Args:
        student: logits `(windows, length, vocabulary)`.
        teacher: the same.
        labels: `(windows, length)`; position i of the logits predicts label i + 1.
        temperature: T.
    """
    learnt = labels[:, 1:] != IGNORED
    p_s = F.log_softmax(student[:, :-1][learnt].float() / temperature, dim=-1)  # (tokens, vocabulary)
    p_t = F.log_softmax(teacher[:, :-1][learnt].float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(p_s, p_t, log_target=True, reduction="sum")


class RecoveryTrainer(transformers.Trainer):
    """The Trainer with a teacher, and a stop at the first loss that is not finite.

    Args:
        teacher: the unpruned model, or none.
        temperature: T of the distillation.
        share: of the distillation in the loss.
    """

    def __init__(self, *args: Any, teacher: Any, temperature: float, share: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.temperature, self.share = teacher, temperature, share

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """(1 − share)·cross entropy + share·T²·KL(p_T ‖ p_S), each a mean over the tokens with loss."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            labels = inputs["labels"]
            total = distillation_loss(outputs.logits, teacher, labels, self.temperature)
            count = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            loss = (1 - self.share) * loss + self.share * total / count
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One pass; raises NonFiniteError where the loss is NaN or infinite."""
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(float(loss)):
            kept = last_state(Path(str(self.args.output_dir)))
            where = f"the state of step {_step(kept)} is kept" if kept else "no state was kept yet"
            raise NonFiniteError(
                f"recovery, step {self.state.global_step + 1}: the loss is {float(loss)}; {where}; lower the learning"
                " rate, or load the model in bfloat16 or float32"
            )
        return loss


def train(
    model: Any,
    tokenizer: transformers.PreTrainedTokenizerBase,
    data: TrainingData,
    config: RecoveryConfig,
    work: Path,
    *,
    run: str,
    teacher: Any = None,
    training_arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains the parameters of a model that require gradients, in place; goes on from the work folder's last state.

    Args:
        model: a peft model.
        tokenizer: of the model.
        data: what to learn.
        config: the settings.
        work: private folder of the Trainer's states.
        run: what identifies the run, so that another's states are refused.
        teacher: the unpruned model in `scoring_mode`, on the same device, for distillation.
        training_arguments: of `TrainingArguments`, over what the config says.

    Returns:
        Steps, epochs, losses (first and last that were logged, the lowest or last held out), seconds since it was
        started last.

    Raises:
        ConfigError: training arguments that do not go together.
        CheckpointError: the work folder is another run's.
        NonFiniteError: a loss is NaN or infinite.
    """
    _claim(work, run)
    trainer = RecoveryTrainer(
        model=model,
        args=_arguments(model, data, config, work, dict(training_arguments or {})),
        train_dataset=data.train,
        eval_dataset=data.validation or None,
        data_collator=transformers.DataCollatorForSeq2Seq(_with_padding(tokenizer), label_pad_token_id=IGNORED),
        callbacks=[transformers.EarlyStoppingCallback(config.patience)] if config.patience else [],
        teacher=teacher,
        temperature=config.temperature,
        share=config.distillation,
    )
    trainer.remove_callback(transformers.PrinterCallback)  # it would print every loss to standard output
    return _trained(trainer, last_state(work), data.source, best=bool(config.patience))


def _trained(trainer: transformers.Trainer, state: Path | None, source: str, *, best: bool) -> dict[str, Any]:
    """What `train` returns; of the losses held out the lowest or, where training did not go by them, the last."""
    before = read_state(state) if state else None
    if state and before and before.global_step >= before.max_steps:  # it ended, and was not saved
        set_peft_model_state_dict(trainer.model, read_tensors(state / _ADAPTER, "the adapter of a state")[0])
        trainer.state, seconds = before, 0.0
    else:
        seconds = _train(trainer, state, source)
    logged = trainer.state.log_history
    validation, losses = ([entry[name] for entry in logged if name in entry] for name in ("eval_loss", "loss"))
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "validation_loss": None if not validation else min(validation) if best else validation[-1],
        "seconds": seconds,
    }


def _train(trainer: transformers.Trainer, state: Path | None, source: str) -> float:
    """Trains on from a state, or from the beginning; returns the seconds."""
    args = trainer.args
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    logger.info("training: %s of %d sequences, on %s", length, batch, source)
    try:
        return float(trainer.train(resume_from_checkpoint=str(state) if state else None).metrics["train_runtime"])
    except (OSError, SafetensorError, RuntimeError) as error:
        # of a full disk torch.save makes a RuntimeError, safetensors one of its own; both name no errno
        full = is_full(error) if isinstance(error, OSError) else any(words in str(error) for words in _FULL_DISK)
        if isinstance(error, MoreauError) or not full:
            raise
        work = Path(str(args.output_dir))
        kept = "the last whole state is kept" if last_state(work) else "no state was kept yet"
        raise CheckpointError(f"{work}: a state cannot be written ({reason(error)}); {kept}") from error


def _claim(work: Path, run: str) -> None:
    """Makes the work folder this run's, or sees that it is."""
    marker = work / _RUN
    if marker.is_file() and not marker.stat().st_size:
        logger.warning("%s: is empty, as a run leaves it that was killed at its start: started over", marker)
        for state in work.glob("checkpoint-*"):  # of which run is not known
            shutil.rmtree(state)
    elif marker.is_file():
        if read_json(marker, "the record of a recovery's run; remove its folder to start over") != {"run": run}:
            raise CheckpointError(
                f"{work}: holds the state of another recovery (model, data or settings differ); remove it, or give"
                " another folder (--work-dir)"
            )
        return
    elif work.is_dir() and any(not path.name.startswith(".") for path in work.iterdir()):
        raise CheckpointError(f"{work}: is not a recovery's work folder, and not empty; give another (--work-dir)")
    work.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"run": run})


def _arguments(
    model: Any, data: TrainingData, config: RecoveryConfig, work: Path, given: dict[str, Any]
) -> transformers.TrainingArguments:
    batch = min(config.batch_size, len(data.train))
    micro = min(config.micro_batch_size, batch)
    steps = config.max_steps or math.ceil(config.epochs * math.ceil(len(data.train) / batch))
    values: dict[str, Any] = {
        "output_dir": str(work),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "warmup_steps": int(config.warmup * steps),
        "lr_scheduler_type": "linear",
        "logging_steps": _LOGGED if steps >= 5 * _LOGGED else 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "activation_checkpointing": config.gradient_checkpointing,
        "use_cpu": model.device.type == "cpu",
        "seed": config.seed,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
    }
    if data.validation:
        values |= {"eval_strategy": "steps", "eval_steps": config.save_steps}
    if config.patience:
        values |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    try:
        arguments = transformers.TrainingArguments(**values | given)
        if "gradient_accumulation_steps" not in given:
            arguments.gradient_accumulation_steps = max(1, batch // (micro * arguments.world_size))
        return arguments
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training arguments: {error}") from error


def _with_padding(tokenizer: transformers.PreTrainedTokenizerBase) -> transformers.PreTrainedTokenizerBase:
    """A copy that can pad: padded positions carry no attention and no loss, so any token serves."""
    if tokenizer.pad_token is not None:
        return tokenizer
    copied = copy.deepcopy(tokenizer)
    copied.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.convert_ids_to_tokens(0)
    return copied


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


def read_state(folder: Path) -> transformers.TrainerState:
    """Reads the Trainer's state of a folder `checkpoint-STEP`.

    Raises:
        CheckpointError: it is missing or damaged: a field of another type, steps that are not the folder's, or a best
            state that is not this run's, or is damaged itself.
    """
    file = folder / _STATE
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
        read_tensors(best / _ADAPTER, "the adapter of the best state")
    try:
        return transformers.TrainerState(**values)
    except TypeError as error:
        raise CheckpointError(f"{refused}: {first_line(error)}") from error


def last_state(work: Path) -> Path | None:
    """The last state that was written to its end: the Trainer writes trainer_state.json last."""
    states = [folder for folder in work.glob("checkpoint-*") if _step(folder).isdecimal()]
    newest = sorted(states, key=lambda folder: int(_step(folder)), reverse=True)
    return next((folder for folder in newest if _is_whole(folder)), None)


def _step(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def _is_whole(folder: Path) -> bool:
    """Whether a state can be gone on from: one that was killed while it was written, or damaged, cannot."""
    try:
        read_state(folder)
        read_tensors(folder / _ADAPTER, "the adapter of a state")
        archives = [file for file in folder.iterdir() if file.suffix in (".pt", ".pth")]
        if damaged := next((file.name for file in archives if zipfile.ZipFile(file).testzip() is not None), None):
            raise CheckpointError(f"{damaged} is damaged")
    except (CheckpointError, OSError, zipfile.BadZipFile) as error:
        logger.warning("%s: cannot be gone on from (%s); the state before it is taken", folder.name, first_line(error))
        return False
    return True
