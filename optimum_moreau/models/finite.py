"""Says where a NaN or an infinity comes from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, forward: Callable[[], object]) -> str:
    """Says in which module a NaN or infinity appears first, by one more forward pass of the model."""
    found: list[str] = []

    def watch(name: str, module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not found and isinstance(first, Tensor) and not torch.isfinite(first).all():
            found.append(name)

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(partial(watch, name)).remove)
        forward()
    if not found:
        return "every layer's output is finite, the loss itself overflows; load the model in bfloat16 or float32"
    return f"{found[0]} is the first with a non-finite output; check its weights, or load the model in another dtype"
