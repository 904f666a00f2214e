"""What a process, or a model's config, happens to be set to decides no result, and is afterwards as it was.

Of the process: default dtype and device, whether gradients are on, inference mode, autocast, and the random numbers
that all share. Of a config: what a forward pass returns besides the logits, and as what.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch

_AUTOCASTS = ("cpu", "cuda", "xpu", "mps")
_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "_output_attentions": False}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the block, or the function that it decorates, the process is as if nobody had set anything.

    Deterministic algorithms, the precision of matrix products and the number of threads are left as they are.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _AUTOCASTS:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def plain_outputs(*models: Any) -> Iterator[None]:
    """Within the block models return named outputs, and no hidden states or attentions, whatever their configs say."""
    with ExitStack() as stack:
        for model, (name, plain) in product(models, _OUTPUTS.items()):
            if (value := getattr(model.config, name, None)) not in (None, plain):
                stack.callback(setattr, model.config, name, value)
                setattr(model.config, name, plain)
        yield
