"""`RecoveryConfig`: how a pruned model is tuned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import ConfigError
from ..registry import suggestion
from .validation import check_whole

LOSS_ON = ("answer", "all")
_MOST = 10**8  # of any count: more can only be a slip


@dataclass(frozen=True)
class RecoveryConfig:
    """Settings of the recovery; the defaults are the paper's protocol (MoreauPruner, section 4.1; LLM-Pruner).

    Attributes:
        rank: r of LoRA.
        alpha: α of LoRA; the adapter is scaled by α/r.
        dropout: on the adapters' inputs.
        epochs: passes over the training records.
        max_steps: optimizer steps, instead of `epochs`.
        batch_size: sequences per optimizer step, over all processes and accumulated passes.
        micro_batch_size: sequences per forward pass and process.
        learning_rate: at its peak, after the warm-up; falls linearly to 0.
        warmup: share of the steps in which it rises.
        sequence_length: tokens per sequence at most.
        loss_on: `answer` (of instructions and chats) or `all` tokens.
        packing: fill every sequence with as many records as fit, one after the other.
        validation: share of the records that is held out, at most 2000 records.
        patience: stop after so many evaluations without a lower validation loss; the best state is kept.
        save_steps: optimizer steps between the states that an interrupted run goes on from, and between evaluations.
        temperature: of the distillation.
        distillation: share of the distillation in the loss, where there is a teacher.
        gradient_checkpointing: trade time for memory.
        seed: of order, split and dropout.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    epochs: float = 2.0
    max_steps: int | None = None
    batch_size: int = 64
    micro_batch_size: int = 4
    learning_rate: float = 1e-4
    warmup: float = 0.06
    sequence_length: int = 256
    loss_on: str = "answer"
    packing: bool = False
    validation: float = 0.05
    patience: int | None = None
    save_steps: int = 100
    temperature: float = 2.0
    distillation: float = 0.5
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        whole = ("rank", "alpha", "batch_size", "micro_batch_size", "save_steps")
        for name in (*whole, *(name for name in ("max_steps", "patience") if getattr(self, name) is not None)):
            value = getattr(self, name)
            check_whole(name, value, least=1, most=_MOST)
        check_whole("sequence_length", self.sequence_length, least=2, most=2**24)
        for name in ("epochs", "learning_rate", "temperature"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                hint = "; in YAML write 1.0e-4, with the point" if isinstance(value, str) else ""
                raise ConfigError(f"{name}: {value!r} is not a number > 0{hint}")
        check_whole("seed", self.seed, least=0, most=2**32 - 1)  # numpy's are of 32 bits
        for name in ("packing", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: {getattr(self, name)!r} is not true or false")
        for name in ("dropout", "warmup", "validation"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ConfigError(f"{name}: {value!r} is not a share in [0, 1)")
        if type(self.distillation) not in (int, float) or not 0 <= self.distillation <= 1:
            raise ConfigError(f"distillation: {self.distillation!r} is not a share in [0, 1]")
        if self.loss_on not in LOSS_ON:
            raise ConfigError(f"loss_on: unknown value '{self.loss_on}'. Known: {', '.join(LOSS_ON)}")
        if self.patience is not None and not self.validation:
            raise ConfigError("patience: needs a validation share > 0")

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RecoveryConfig:
        """Makes the settings of a dictionary.

        Raises:
            ConfigError: an unknown name.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown setting '{name}'.{suggestion(name, known)}")
        return cls(**values)
