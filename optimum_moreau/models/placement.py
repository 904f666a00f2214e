"""Where a model's tensors are: on the device where they compute, or kept elsewhere by accelerate, which loads them.

accelerate leaves an offloaded parameter on the meta device, and a hook on its module that knows where the values are
(`device_map="auto"`, `cpu_offload`, `disk_offload`). What is offloaded its `has_offloaded_params` says. Its
`align_module_device` unties weights that are one, and for a value of another shape, the device without a load, and a
class that changes it has no helper: these read the hook.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset, has_offloaded_params
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ConfigError, UnsupportedModelError, first_line
from ..files import write_tensors
from ..files.temporary import temporary_folder

# Keeps what some modules of a layer hold now: index of the layer, names inside it.
Keep = Callable[[int, Collection[str]], None]


def loaded(module: Any, name: str) -> Tensor:
    """Returns a parameter of a module on the device where it computes, without its history."""
    parameter = getattr(module, name)
    if not parameter.is_meta:
        return parameter.detach()
    return module._hf_hook.weights_map[name].to(module._hf_hook.execution_device)


def device_of(module: Any, name: str = "weight") -> torch.device:
    """Where a module computes with a parameter."""
    parameter = getattr(module, name)
    return torch.device(module._hf_hook.execution_device) if parameter.is_meta else parameter.device


def replace_parameter(module: Any, name: str, value: Tensor) -> None:
    """In place: gives a parameter new values of any shape; an offloaded one is then kept in CPU memory."""
    old = getattr(module, name)
    if old.is_meta:
        _keep(module._hf_hook.weights_map, name, value.cpu())
        value = value.to("meta")
    setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))


def put(module: Any, value: Tensor, name: str = "weight") -> None:
    """In place: gives a parameter other values, of its dtype."""
    parameter = getattr(module, name)
    if parameter.is_meta or parameter.is_inference() or parameter.shape != value.shape:
        replace_parameter(module, name, value)
    else:
        parameter.copy_(value)


def parameter_names(module: Any) -> list[str]:
    """The names of what a module itself holds, as a linear layer its weight, and its bias if it has one."""
    return [name for name, _ in module.named_parameters(recurse=False)]


@contextmanager
def restored(layers: Any, *, always: bool = False) -> Iterator[Keep]:
    """Keeps on disk what decoder layers were before they are changed, and puts it back if the block ends in an error.

    With `always`, however it ends.
    """
    with temporary_folder("undo") as work, ExitStack() as undo:

        def keep(index: int, names: Collection[str]) -> None:
            modules = {name: layers[index].get_submodule(name) for name in names}
            paths = {f"{name}.{own}": (one, own) for name, one in modules.items() for own in parameter_names(one)}
            values = {path: loaded(*parameter).cpu().contiguous() for path, parameter in paths.items()}
            write_tensors(work / str(index), values)
            undo.callback(_put_back, layers[index], work / str(index))

        yield keep
        if not always:
            undo.pop_all()


@torch.no_grad()
def _put_back(layer: Any, file: Path) -> None:
    for path, value in load_file(file).items():
        owner, _, name = path.rpartition(".")
        module = layer.get_submodule(owner)
        device = getattr(module, name).device
        put(module, value.to("cpu" if device.type == "meta" else device), name)


def tie(head: nn.Module, embedding: nn.Module) -> None:
    """In place: gives the head the embedding's weight, of another shape than before, as one parameter."""
    if head.weight.is_meta:
        replace_parameter(head, "weight", loaded(embedding, "weight"))
    head.weight = embedding.weight


def parameter_values(model: nn.Module, name: str) -> Tensor:
    """Returns a parameter of a model by its full name, as `loaded` does."""
    owner, _, own_name = name.rpartition(".")
    return loaded(model.get_submodule(owner), own_name)


def is_offloaded(model: nn.Module) -> bool:
    """Whether some of its parameters are kept elsewhere."""
    return any(parameter.is_meta for parameter in model.parameters())


def check_loaded(model: nn.Module) -> None:
    """Raises UnsupportedModelError, naming the first, for parameters without values."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta and not has_offloaded_params(model.get_submodule(name.rpartition(".")[0])):
            raise UnsupportedModelError(
                f"{name} is on the meta device and accelerate keeps no values for it; load it whole"
            )


def check_device(device: str | None, *, present: bool = True) -> torch.device:
    """Returns the device that a name (`cpu`, `cuda:0`) stands for; default: cuda where there is one.

    Raises:
        ConfigError: there is no such device, or it is not `present`, as for an estimate it need not be.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if present:
            torch.empty(0, dtype=torch.float32, device=found)
        return found
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device: '{device}' cannot be used here ({first_line(error)})") from error


def input_device(model: Any) -> torch.device:
    """Where token ids go in."""
    return device_of(model.get_input_embeddings())


def prepare_offloaded(model: Any) -> None:
    """In place: restores what accelerate forgets of an offloaded model, and transformers needs to save it.

    That tied weights are one: every pass makes them two parameters; and that there is a device map.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight.is_meta and embedding.weight.is_meta:
        head.weight = embedding.weight
    if is_offloaded(model) and not hasattr(model, "hf_device_map"):
        model.hf_device_map = {"": "cpu"}


def state_to_save(model: Any) -> dict[str, Tensor] | None:
    """The state dict for `save_pretrained`; `None` where it makes the right one itself.

    Of an offloaded model it would write a tied head beside the embedding, and then refuse that they share memory.
    """
    if not (is_offloaded(model) and model.config.tie_word_embeddings):
        return None
    return {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}


@contextmanager
def unhooked(layer: nn.Module) -> Iterator[None]:
    """Within the block accelerate loads nothing for what is called: whoever calls brings the values."""
    with ExitStack() as stack:
        for module in layer.modules():
            if "_old_forward" in vars(module):
                stack.enter_context(forward_of(module, vars(module)["_old_forward"]))
        yield


@contextmanager
def forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block a module computes something else."""
    own = module.__dict__.get("forward")  # accelerate's, of an offloaded model
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def hook_again(module: Any) -> None:
    """In place: lets accelerate's hook call the forward of the class that the module has now."""
    if "_old_forward" in vars(module):
        module._old_forward = MethodType(type(module).forward, module)


def _keep(values: Any, name: str, tensor: Tensor) -> None:
    if isinstance(values, PrefixedDataset):
        _keep(values.dataset, f"{values.prefix}{name}", tensor)
    elif isinstance(values, OffloadedWeightsLoader):
        values.state_dict[name] = tensor  # goes before what is on disk
    else:
        values[name] = tensor
