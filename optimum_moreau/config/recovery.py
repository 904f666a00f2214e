"""`RecoveryConfig`: how a pruned model is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import ConfigError
from ..registry import suggestion
from .settings import Share, setting, settings, settings_of

Count = Annotated[int, Field(ge=1, le=10**8)]  # more can only be a slip


@settings
class RecoveryConfig:
    """Settings of the recovery; the defaults are the paper's protocol (MoreauPruner, section 4.1; LLM-Pruner).

    Raises:
        ConfigError: a value is out of its range or contradicts another.
    """

    rank: Count = setting("r of LoRA", default=8)
    alpha: Count = setting("α of LoRA; the adapter is scaled by α/r", default=16)
    dropout: Share = setting("on the adapters' inputs", default=0.05, metavar="SHARE")
    epochs: float = setting("passes over the training records", default=2.0, gt=0)
    max_steps: Count | None = setting("instead of epochs: optimizer steps", default=None)
    batch_size: Count = setting("sequences per optimizer step, over all processes and accumulated passes", default=64)
    micro_batch_size: Count = setting("sequences per forward pass and process", default=4)
    learning_rate: float = setting(
        "peak learning rate, after the warm-up; from there it falls linearly to 0", default=1e-4, flag="lr", gt=0
    )
    warmup: Share = setting("share of the steps in which the learning rate rises", default=0.06, metavar="SHARE")
    sequence_length: int = setting("tokens per sequence at most", default=256, flag="seq-len", ge=2, le=2**24)
    loss_on: Literal["answer", "all"] = setting("what is learnt of instructions and chats", default="answer")
    packing: bool = setting("fill every sequence with as many records as fit, one after the other", default=False)
    validation: Share = setting("share of the records held out, at most 2000", default=0.05, metavar="SHARE")
    patience: Count | None = setting(
        "stop after N evaluations without a lower validation loss; the best state is kept", default=None
    )
    save_steps: Count = setting(
        "optimizer steps between kept states, from which a run goes on, and between evaluations", default=100
    )
    temperature: float = setting("of the distillation", default=2.0, gt=0)
    distillation: float = setting(
        "share of the distillation in the loss, where there is a teacher", default=0.5, metavar="SHARE", ge=0, le=1
    )
    gradient_checkpointing: bool = setting("trade time for memory", default=False)
    seed: int = setting("of order, split and dropout", default=0, ge=0, le=2**32 - 1)  # as numpy's

    def __post_init__(self) -> None:
        if self.patience is not None and not self.validation:
            raise ConfigError("patience: needs a validation share > 0")

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecoveryConfig:
        """Makes the settings of a dictionary.

        Raises:
            ConfigError: an unknown name, or a value as above.
        """
        known = [one.name for one in settings_of(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown setting '{name}'.{suggestion(name, known)}")
        return cls(**values)
