"""A model without weights: made of its config on the meta device, where it takes no memory and no time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def skeleton(config: Any, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Returns the model that a config describes, on the meta device.

    Args:
        config: of transformers; the model keeps it, and notes the dtype in it.
        dtype: of the weights; default: what the config says.
        trust_remote_code: build it by code that lies beside the config.
    """
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(
            config, dtype=dtype or config.dtype, trust_remote_code=trust_remote_code
        )
    return made.eval()


def skeleton_of(model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
    """Returns the same model on the meta device, with changes in its config."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    return skeleton(config, model.dtype)
