"""Trains one block to give the dense stream from the pruned one.

A block f is a layer with its attention or its MLP giving zeros, so the other one with all norms around it: stream to
stream, in families with norms before or behind. Where attention and MLP are parallel it is the whole layer. Of token t,
h̃ is the pruned stream before the block, and h the dense one behind it:

    L(θ) = mean_t ‖f(h̃; θ)_t − h_t‖² / ‖h_t‖²                        θ ← Adam(θ, ∇L)

The next norm divides by the stream's size, so that a token counts by its relative error; a plain sum of squares would
be that of the first token alone, whose stream is hundreds of times larger than others' in many models.

θ is everything that the block has but the zeros of o_proj and down_proj, of which the rest of a unit that goes gets no
gradient. θ is float32 whatever the model's dtype, and only that of one block. Some windows are not trained on but
watched: of the states that are met, the refit's first, that of the least L on these is taken, rounded to the model's
dtype. The refit was fitted to these windows too, so that the choice leans towards it.

transformers' Trainer trains a model whole, on a data set, on one device; here a part of a layer learns from streams
that lie in CPU memory, and its weights may be kept elsewhere by accelerate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from ..models.placement import device_of, forward_of, loaded, parameter_names, put, unhooked
from .aims import Aims
from .done import Trained
from .train import Train

CHECK = 20  # steps between two looks at the windows that are watched
WATCHED = 1 / 8  # of the windows


@dataclass(frozen=True)
class Lesson:
    """What a block learns from.

    Attributes:
        inputs: h̃ of every window, `(length, hidden)`, on any device.
        aims: h of every window, likewise.
        trained: which windows are trained on.
        watched: which are watched.
        arguments: what the layer is given besides.
    """

    inputs: Sequence[Tensor]
    aims: Sequence[Tensor]
    trained: Sequence[int]
    watched: Sequence[int]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def giving_zeros(layer: nn.Module, name: str | None) -> Iterator[None]:
    """Within the block a layer's attention or MLP gives zeros; `None`: neither."""
    if name is None:
        yield
        return

    def zeros(*args: Any, **kwargs: Any) -> Any:
        found = torch.zeros_like(args[0] if args else kwargs["hidden_states"])
        return found if name == "mlp" else (found, None)

    with forward_of(layer.get_submodule(name), zeros):
        yield


class BlockTrainer:
    """Trains one block, in place.

    Args:
        layer: the decoder layer.
        silent: its module that gives zeros, `self_attn` or `mlp`; `None`: neither.
        masks: parameter → ones where it may change, of those that may not everywhere.
    """

    def __init__(self, layer: nn.Module, silent: str | None, masks: dict[str, Tensor]):
        self.layer, self.silent, self.masks = layer, silent, masks
        self.owners: dict[str, tuple[Any, str]] = {}
        for path, module in layer.named_modules():
            if silent is None or path.split(".")[0] != silent:
                self.owners |= {f"{path}.{name}": (module, name) for name in parameter_names(module)}

    def train(self, name: str, lesson: Lesson, settings: Train, generator: Generator) -> Trained:
        """Trains; afterwards the block has the best state that was met."""
        lesson = self._wide(lesson)
        stored = {path: loaded(*owner) for path, owner in self.owners.items()}
        state = {path: value.float().clone().requires_grad_() for path, value in stored.items()}
        size = max(1, settings.batch_tokens // len(lesson.inputs[0]))
        with ExitStack() as stack:
            stack.enter_context(unhooked(self.layer))
            stack.enter_context(giving_zeros(self.layer, self.silent))
            before = least = self._watched(state, lesson, size)
            best, taken = None, 0
            for step in self._steps(state, lesson, settings, size, generator):
                if step % CHECK and step != settings.steps:
                    continue
                rounded = {path: value.detach().to(stored[path].dtype) for path, value in state.items()}
                error = self._watched({path: value.float() for path, value in rounded.items()}, lesson, size)
                if error < least:
                    least, taken = error, step
                    best = {path: value.clone() for path, value in rounded.items()}
                elif step - taken >= settings.patience:
                    break
        for path, value in (best or {}).items():
            module, own = self.owners[path]
            put(module, value, own)
        return Trained(name, taken, before, least)

    def _steps(
        self, state: dict[str, Tensor], lesson: Lesson, settings: Train, size: int, generator: Generator
    ) -> Iterator[int]:
        """Makes the steps, and yields after each how many there were."""
        matrices = [value.detach().square().mean() for value in state.values() if value.dim() > 1]
        scale = float(torch.stack(matrices).mean().sqrt())
        adam = torch.optim.Adam(state.values(), eps=1e-12)  # where L is small, so are its gradients
        drawn: list[int] = []
        for step in range(settings.steps):
            if len(drawn) < size:
                order = torch.randperm(len(lesson.trained), generator=generator, dtype=torch.int64, device="cpu")
                drawn += [lesson.trained[i] for i in order.tolist()]
            windows, drawn = drawn[:size], drawn[size:]
            done = step / settings.steps
            for group in adam.param_groups:
                group["lr"] = settings.learning_rate * scale * min(1.0, 10 * (step + 1) / settings.steps) * (1 - done)
            with torch.enable_grad():
                error = self._error(state, lesson, windows)
                gradients = torch.autograd.grad(error, list(state.values()), allow_unused=True)
            for (path, value), gradient in zip(state.items(), gradients, strict=True):
                if gradient is not None and path in self.masks:
                    gradient = gradient * self.masks[path].to(gradient.device)
                value.grad = gradient
            adam.step()
            yield step + 1

    @torch.no_grad()
    def _watched(self, state: dict[str, Tensor], lesson: Lesson, size: int) -> float:
        """L of the windows that are watched."""
        parts = [lesson.watched[i : i + size] for i in range(0, len(lesson.watched), size)]
        return sum(len(own) * float(self._error(state, lesson, own)) for own in parts) / len(lesson.watched)

    def _error(self, state: dict[str, Tensor], lesson: Lesson, windows: Sequence[int]) -> Tensor:
        """L of some windows."""
        device = next(iter(state.values())).device
        inputs, aims = (
            torch.stack([all_[i] for i in windows]).to(device).float() for all_ in (lesson.inputs, lesson.aims)
        )
        args, kwargs = lesson.arguments
        output = functional_call(self.layer, state, (inputs, *args), kwargs)
        found = output[0] if isinstance(output, tuple) else output
        squares = (found - aims).square().sum(-1)  # (windows, length)
        return (squares * Aims.weight(aims)).mean()

    def _wide(self, lesson: Lesson) -> Lesson:
        """The lesson, with arguments of float32 where the block computes."""
        module, name = next(iter(self.owners.values()))
        args, kwargs = _cast(lesson.arguments, device_of(module, name))
        return Lesson(lesson.inputs, lesson.aims, lesson.trained, lesson.watched, (args, kwargs))


def _cast(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, torch.float32) if value.is_floating_point() else value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(one, device) for one in value)
    if isinstance(value, dict):
        return {key: _cast(one, device) for key, one in value.items()}
    return value
