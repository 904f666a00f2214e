"""What transformers' constructors make of a config alone: a model without weights, and the state that is none.

The frequencies of RoPE are float32 buffers that `model.bfloat16()` casts, and that dynamic and longrope replace when a
window is longer than the trained positions; no checkpoint holds them, and a reload builds them from the config. Here
they are built as a reload does, by transformers' own constructors, so that no list of RoPE types or families is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import ExportError, first_line

# What transformers raises of a config that it cannot read or build.
UNBUILDABLE = (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError)
# What a module keeps of its own when it takes over another's attributes: torch's state, and the user's settings.
OWN = {*vars(nn.Module()), "training", "generation_config", "gradient_checkpointing", "name_or_path"}


def skeleton(config: Any, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Returns the model that a config describes, on the meta device, where it takes no memory and no time.

    Args:
        config: of transformers; the model keeps it, and notes the dtype in it.
        dtype: of the weights; default: what the config says.
        trust_remote_code: build it by code that lies beside the config.
    """
    how = {"dtype": dtype or config.dtype, "trust_remote_code": trust_remote_code}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **how).eval()


def skeleton_of(model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
    """Returns the same model on the meta device, with changes in its config."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    return skeleton(config, model.dtype)


def built_from(config: Any, dtype: torch.dtype | None = None) -> Any:
    """The model as a reload builds it before it reads weights: as `skeleton` does, but what is no parameter on the CPU.

    Raises:
        ExportError: transformers cannot build it.
    """
    try:
        model = skeleton(config, dtype)
        with torch.device("cpu"):
            for module in model.modules():
                for name in module._non_persistent_buffers_set:
                    module._buffers[name] = torch.empty_like(getattr(module, name), device="cpu")
            model.initialize_weights()  # draws nothing: the parameters have no values
    except UNBUILDABLE as error:
        raise ExportError(
            f"transformers cannot build a '{config.model_type}' from this config ({first_line(error)}); nobody could"
            " load the result"
        ) from error
    return model


def take_over(module: nn.Module, pattern: nn.Module, but: Collection[str] = ()) -> None:
    """In place: gives a module plain attributes, `but` some, and buffers that no checkpoint holds, of a `built_from`.

    Buffers go to the device of its own. What earlier passes left beside them (longrope's second frequencies) goes.
    """
    if pattern._non_persistent_buffers_set:
        left = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
        for name in left:
            if name not in vars(pattern):
                delattr(module, name)
    for name in pattern._non_persistent_buffers_set:
        module._buffers[name] = _moved_to(module._buffers.get(name), pattern._buffers[name])
    vars(module).update((name, value) for name, value in vars(pattern).items() if name not in OWN and name not in but)


def reset_buffers(model: Any) -> None:
    """In place: the state that is not a weight becomes what a reload of the model would build."""
    with as_reloaded(model, undone=False):
        pass


@contextmanager
def as_reloaded(model: Any, *, undone: bool = True) -> Iterator[None]:
    """In place, for a while: the state that is not a weight is what a reload of the model would build.

    Afterwards it is as it was; unless `undone`, only if the block ends in an error.
    """
    built = built_from(copy.deepcopy(model.config), model.dtype)
    with ExitStack() as undo:
        for name, pattern in built.named_modules():
            if pattern._non_persistent_buffers_set:
                module = model.get_submodule(name)
                undo.callback(_put_back, module, dict(vars(module)), dict(module._buffers))
                take_over(module, pattern, ["config"])  # whose owner is the model
        yield
        if not undone:
            undo.pop_all()


def _put_back(module: nn.Module, attributes: dict[str, Any], buffers: dict[str, Tensor | None]) -> None:
    # the model may have moved
    there = {name: _moved_to(module._buffers.get(name), buffer) for name, buffer in buffers.items()}
    vars(module).clear()
    vars(module).update(attributes)
    module._buffers.clear()
    module._buffers.update(there)


def _moved_to(there: Tensor | None, value: Tensor | None) -> Tensor | None:
    return value if there is None or there.is_meta or value is None else value.to(there.device)
