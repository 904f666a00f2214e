"""Hooks for a while: units that are not heard, other weights, layers skipped; and the module that a NaN comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .placement import loaded
from .units import Block


@contextmanager
def silent(units: Iterable[tuple[nn.Module, Block, Sequence[int] | Tensor]]) -> Iterator[None]:
    """Within the block, what some units hand to o_proj or down_proj is zero; they speak through nothing else.

    Args:
        units: a decoder layer, one of its blocks, and which of the block's units fall silent.
    """
    with ExitStack() as stack:
        for layer, block, own in units:
            reader: Any = layer.get_submodule(block.reader.module)
            columns = block.lines(block.reader, reader.weight.shape[1])[own].flatten()

            def silence(module: nn.Module, args: tuple[Any, ...], columns: Tensor = columns) -> tuple[Any, ...]:
                return (args[0].index_fill(-1, columns.to(args[0].device), 0), *args[1:])

            stack.callback(reader.register_forward_pre_hook(silence).remove)
        yield


@contextmanager
def standing_in(weights: Iterable[tuple[nn.Module, Tensor]]) -> Iterator[None]:
    """Within the block some linear layers compute with another weight, of the same shape; their own stay as they are.

    Args:
        weights: a linear layer and what stands in for its weight, wherever that lies.
    """
    with ExitStack() as stack:
        for module, weight in weights:
            own = module.__dict__.get("forward")  # accelerate's, of an offloaded model, or another one's stand-in
            if own is None:
                stack.callback(delattr, module, "forward")
            else:
                stack.callback(setattr, module, "forward", own)
            module.forward = partial(_computed, module, weight)
        yield


def _computed(module: Any, weight: Tensor, x: Tensor) -> Tensor:
    bias = None if module.bias is None else loaded(module, "bias").to(x.device)
    return nn.functional.linear(x, weight.to(x.device), bias)


@contextmanager
def skipped(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block some decoder layers hand on what reaches them, as if they were not there."""

    def hand_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(hand_on, with_kwargs=True).remove)
        yield


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
