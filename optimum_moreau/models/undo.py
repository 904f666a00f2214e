"""Layers that are changed one after the other, and are as they were if that ends in an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..files import write_tensors
from ..files.temporary import temporary_folder
from .placement import loaded, replace_parameter

# Keeps what some modules of a layer hold now: index of the layer, names inside it.
Keep = Callable[[int, Collection[str]], None]


@contextmanager
def restored(layers: Any, *, always: bool = False) -> Iterator[Keep]:
    """Keeps on disk what a layer was before it is changed, and puts it back if the block ends in an error.

    Args:
        layers: the model's decoder layers.
        always: puts it back, however the block ends.
    """
    kept: list[int] = []
    with temporary_folder("undo") as work:

        def keep(index: int, names: Collection[str]) -> None:
            modules = {name: layers[index].get_submodule(name) for name in names}
            paths = {f"{name}.{own}": (one, own) for name, one in modules.items() for own in parameter_names(one)}
            values = {path: loaded(*parameter).cpu().contiguous() for path, parameter in paths.items()}
            write_tensors(work / str(index), values)
            kept.append(index)

        whole = False
        try:
            yield keep
            whole = True
        finally:
            if always or not whole:
                for index in kept:
                    _put_back(layers[index], load_file(work / str(index)))


def _put_back(layer: Any, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for path, value in values.items():
            owner, _, name = path.rpartition(".")
            module = layer.get_submodule(owner)
            put(module, value.to(module.weight.device if not module.weight.is_meta else "cpu"), name)


def put(module: Any, value: Tensor, name: str = "weight") -> None:
    """In place: gives a parameter other values, of its dtype."""
    parameter = getattr(module, name)
    if parameter.is_meta or parameter.is_inference() or parameter.shape != value.shape:
        replace_parameter(module, name, value)
    else:
        parameter.copy_(value)


def parameter_names(module: Any) -> list[str]:
    """The names of what a linear layer holds."""
    return ["weight"] if module.bias is None else ["weight", "bias"]
