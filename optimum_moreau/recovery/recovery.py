"""LoRA recovery of a pruned model: train an adapter, merge it, save both."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LoraConfig, get_peft_model_state_dict
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..config.recovery import RecoveryConfig
from ..data.instructions import TrainingData, load_examples
from ..data.sources import model_reference
from ..envelope import scoring_mode
from ..errors import ConfigError, MoreauError, NonFiniteError, UnsupportedModelError
from ..files import Record
from ..files.temporary import temporary_folder
from ..models.buffers import as_reloaded, reset_buffers
from ..models.placement import is_offloaded
from ..models.undisturbed import plain_outputs, undisturbed
from ..planning import fingerprint
from ..surgery.apply import check_prunable
from .adapter import Adapter, lora_on
from .training import train

RECOVERY_NAME = "recovery_summary.json"
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class _DataRecord:
    """What a saved summary says of the examples, as `TrainingData.to_dict` writes it; of a merged adapter its name."""

    source: str
    records: int = 0
    skipped: int = 0
    train_sequences: int = 0
    validation_sequences: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class _TrainingRecord:
    """What a saved summary says of a training, as `train` returns it."""

    steps: int
    epochs: float
    first_loss: float | None
    last_loss: float | None
    validation_loss: float | None
    seconds: float


@dataclass(frozen=True)
class RecoverySummary(Record):
    """What a recovery did.

    Attributes:
        settings: of the run.
        data: source, counts and hash of the examples.
        training: steps, losses, seconds.
        trainable_parameters: of the adapter.
        teacher: name of the model distilled from, if any.
        earlier: the summary of the tuning before this one, if the model had been tuned already.
    """

    what: ClassVar[str] = "a recovery summary"

    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    trainable_parameters: int
    teacher: str | None = None
    earlier: Mapping[str, Any] | None = None

    @classmethod
    def parts(cls) -> Mapping[str, type]:
        """What dictionaries in it hold."""
        return {"data": _DataRecord, "training": _TrainingRecord, "earlier": cls}

    def problem(self) -> str:
        """Raises ConfigError for settings that no training can have had."""
        if self.training:  # a merged adapter has settings of its own
            RecoveryConfig.from_dict(dict(self.settings))
        return ""


@dataclass
class MoreauRecovery:
    """Tunes a pruned model with LoRA and merges the adapter into it, in place.

    Args:
        config: the settings; default `RecoveryConfig()`, the paper's protocol.
        tokenizer: of the model.
        keep_zeros: the model is masked: its zeros stay, in training and in the merge.
    """

    config: RecoveryConfig = field(default_factory=RecoveryConfig)
    tokenizer: PreTrainedTokenizerBase | None = None
    keep_zeros: bool = False
    summary: RecoverySummary | None = field(default=None, init=False)
    adapter: Adapter | None = field(default=None, init=False)

    @undisturbed()
    def train(
        self,
        model: PreTrainedModel,
        data: Any,
        *,
        teacher: PreTrainedModel | None = None,
        work_dir: str | Path | None = None,
        training_arguments: Mapping[str, Any] | None = None,
    ) -> RecoverySummary:
        """In place: tunes the model and merges the adapter into its weights.

        Args:
            model: a pruned (or any) causal language model.
            data: records with `instruction`, `input`, `output`; or `messages`; or text: a file, `hub:id[…]`, a
                `datasets.Dataset`, or a list.
            teacher: the unpruned model, to learn from its logits as well.
            work_dir: folder of the Trainer's states; a run that was killed goes on from it. Default: a temporary one.
            training_arguments: of `transformers.TrainingArguments`, over what the config says.

        Raises:
            DataError: fields are missing, or nothing is left to learn from.
            ConfigError: the settings do not fit the model or the teacher.
            NonFiniteError: the loss is NaN or infinite; the model is as it was, the last state stays in `work_dir`.
            CheckpointError: `work_dir` is another run's.
        """
        check_prunable(model)
        check_fits(model.config, self.config, None if teacher is None else teacher.config)
        _check_whole(model)
        examples = self.read(data)
        with ExitStack() as stack:
            if work_dir is None:
                work_dir = stack.enter_context(temporary_folder("recovery"))
            if teacher is not None:
                stack.enter_context(scoring_mode(teacher))
            stack.enter_context(warnings.catch_warnings())  # peft asks transformers by an old name
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            with as_reloaded(model, undone=False):
                self.adapter, found = self._tuned(model, examples, teacher, Path(work_dir), training_arguments)
            reset_buffers(model)
        name = None if teacher is None else model_reference(teacher.config.name_or_path) or "another model"
        self.summary = RecoverySummary(
            self.config.to_dict(), examples.to_dict(), found, self.adapter.parameters, teacher=name
        )
        return self.summary

    def read(self, data: Any) -> TrainingData:
        """Makes training sequences of the data, as `train` does, and refuses what cannot serve.

        Raises:
            DataError: fields are missing, or nothing is left to learn from.
        """
        if self.tokenizer is None:
            raise MoreauError("a tokenizer is needed: MoreauRecovery(config, tokenizer=tokenizer)")
        c = self.config
        drawn: Any = {"validation": c.validation, "seed": c.seed}
        how: Any = {"sequence_length": c.sequence_length, "loss_on": c.loss_on, "packing": c.packing}
        return load_examples(data, self.tokenizer, **how, **drawn)

    @undisturbed()
    def merge(self, model: PreTrainedModel, folder: str | Path) -> RecoverySummary:
        """In place: merges a LoRA adapter that was trained elsewhere on this model.

        Args:
            model: the pruned model it was trained on.
            folder: of the adapter, as peft saves it.

        Raises:
            CheckpointError: no adapter there that can be read, or one for another model; the model is as it was.
        """
        check_prunable(model)
        _check_whole(model)
        self.adapter = Adapter.load(folder)
        self.adapter.merge_into(model, keep_zeros=self.keep_zeros)
        reset_buffers(model)
        settings = {"rank": self.adapter.config.r, "alpha": self.adapter.config.lora_alpha}
        self.summary = RecoverySummary(settings, {"source": Path(folder).name}, {}, self.adapter.parameters)
        return self.summary

    def _tuned(
        self,
        model: PreTrainedModel,
        examples: TrainingData,
        teacher: PreTrainedModel | None,
        work: Path,
        arguments: Mapping[str, Any] | None,
    ) -> tuple[Adapter, dict[str, Any]]:
        """The adapter that training gave, merged into the model, and what `train` returns."""
        assert self.tokenizer is not None  # `train` saw to it
        c = self.config
        base = fingerprint(model)
        run = [base, self.keep_zeros, c.to_dict(), examples.sha256, teacher and fingerprint(teacher)]
        digest = hashlib.sha256(json.dumps(run).encode()).hexdigest()
        lora = LoraConfig(
            r=c.rank, lora_alpha=c.alpha, lora_dropout=c.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        torch.manual_seed(c.seed)
        with plain_outputs(*filter(None, (model, teacher))), lora_on(model, lora, keep_zeros=self.keep_zeros) as tuned:
            found = train(
                tuned, self.tokenizer, examples, c, work, run=digest, teacher=teacher, training_arguments=arguments
            )
            state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
            weights = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
            if odd := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
                raise NonFiniteError(f"recovery: {odd[0]} of the adapter is not finite; lower the learning rate")
        return Adapter(weights, lora, base), found

    def save(self, folder: str | Path) -> None:
        """Writes the adapter, in a folder of its own, and the summary into the folder of a saved model.

        Raises:
            MoreauError: nothing was trained yet.
            CheckpointError: it cannot be written; an adapter that was there stays.
        """
        if self.adapter is None or self.summary is None:
            raise MoreauError("save: nothing was trained yet; call train first")
        self.adapter.save(Path(folder) / ADAPTER_FOLDER)
        self.summary.save(Path(folder) / RECOVERY_NAME)

    @classmethod
    def load(cls, folder: str | Path) -> MoreauRecovery | None:
        """Reads what `save` wrote; `None` where nothing was tuned.

        Raises:
            CheckpointError: a file is damaged.
        """
        if not (Path(folder) / RECOVERY_NAME).is_file():
            return None
        found = cls()
        found.summary = RecoverySummary.load(Path(folder) / RECOVERY_NAME)
        found.adapter = Adapter.load(Path(folder) / ADAPTER_FOLDER)
        return found


def recover(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    config: RecoveryConfig | None = None,
    **options: Any,
) -> MoreauRecovery:
    """In place: tunes a model with LoRA and merges the adapter; `options` are those of `MoreauRecovery.train`."""
    recovery = MoreauRecovery(config or RecoveryConfig(), tokenizer)
    recovery.train(model, dataset, **options)
    return recovery


def check_fits(model: PretrainedConfig, config: RecoveryConfig, teacher: PretrainedConfig | None = None) -> None:
    """Refuses settings that a model, or its teacher, cannot serve; of both their configs.

    Raises:
        ConfigError: says which.
    """
    positions = getattr(model, "max_position_embeddings", None)
    if positions is not None and config.sequence_length > positions:
        raise ConfigError(
            f"sequence_length: {config.sequence_length} is more than the model's {positions} positions; lower it"
            " (--seq-len, in a chain --recover-seq-len)"
        )
    if teacher is not None and teacher.vocab_size != model.vocab_size:
        raise ConfigError(
            f"teacher: has a vocabulary of {teacher.vocab_size}, the model {model.vocab_size}; take the model that was"
            " pruned"
        )


def _check_whole(model: PreTrainedModel) -> None:
    if is_offloaded(model):
        raise UnsupportedModelError("recovery: the model is offloaded; load it whole, or on several GPUs")
