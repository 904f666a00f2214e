"""What a pruning run would take and give, from the model's config alone: no weights are read or allocated.

Memory of scoring at its peak, beside the loaded model:

    held by the criterion (δ, and sums where several passes make one gradient)  +  activations  +  a few matrices

or, where that is more, what reading the text takes before; it is gone by then, but for the windows.

The activations are not a formula: the model's own code runs on the meta device, and what autograd saves is counted.
What is read off the inputs of layers takes forward passes besides, one decoder layer after the other
(estimate/forwards.py).

Time is the floating-point operations of the passes over this machine's measured rate of a matrix product, and one
normal number per weight, twice a batch of a noisy pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..budgets.extent import AT_ONCE
from ..config import MoreauPrunerConfig
from ..config.quantities import words_for_bytes
from ..criteria import Cost
from ..envelope.noise import standard_normal
from ..models.undisturbed import plain_outputs, undisturbed
from ..models.units import Block, ModelShape
from .forwards import (
    budget_operations,
    forward_bytes,
    forward_operations,
    forward_passes,
    reads_gradients,
    score_bytes,
    search_extent,
)

_LENGTH = 31  # tokens of the run on the meta device; no model has a size of 31, so that attention's squares stand out
_RATE_SECONDS = 0.02
_MATRICES = 4  # of the largest weight's size in float32: v, g, and what is computed from them
# On a CPU the C library keeps freed blocks of less than 32 MiB: `benchmarks/cost.py scoring` shows it.
HEAP = {"cpu": 1.2}


@dataclass(frozen=True)
class ScoringEstimate:
    """What scoring takes.

    Attributes:
        criterion: its name.
        device: type of the device that scores.
        passes: forward and backward passes over the calibration text, each time the model is scored.
        model_bytes: the loaded model.
        state_bytes: what the criterion holds while a pass runs.
        pass_bytes: activations of one batch, and the matrices at work.
        peak_memory_bytes: all together.
        seconds: of all times, on this machine, roughly; `None` where the device is not here.
        forwards: forward passes over the calibration text besides, through each layer in scope.
        times: that the model is scored, once for each round.
        search: of the forward passes, those of a search, and the windows that each of these reads.
        text_bytes: what reading and tokenising the calibration text takes, before any pass.
    """

    criterion: str
    device: str
    passes: int
    model_bytes: int
    state_bytes: int
    pass_bytes: int
    peak_memory_bytes: int
    seconds: float | None
    forwards: int = 0
    times: int = 1
    search: tuple[int, int] = (0, 0)
    text_bytes: int = 0

    @property
    def lines(self) -> list[str]:
        """For a reader."""
        kinds = {"forward and backward": self.passes, "forward": self.forwards}
        words = [f"{count} {kind} pass{'es' if count > 1 else ''}" for kind, count in kinds.items() if count]
        passes = " and ".join(words) or "no pass"
        searched, windows = self.search
        passes += f", {searched} of them over {windows} windows" if searched else ""
        each = f", in each of {self.times} rounds" if words and self.times > 1 else ""
        about = f"{each}, {duration(self.seconds)}" if words else ""
        parts = {"model": self.model_bytes, "criterion": self.state_bytes, "one pass": self.pass_bytes}
        if self.peak_memory_bytes > sum(parts.values()):
            parts = {"model": self.model_bytes, "reading the text": self.text_bytes}
        return [f"scoring     {passes}{about}", f"memory      {memory(self.peak_memory_bytes, parts)}"]


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, for a reader."""
    if seconds is None:
        return "how long only a machine with the device can tell"
    if seconds < 90:
        return f"roughly {max(seconds, 1):.0f} s"
    return f"roughly {seconds / 60:.0f} min" if seconds < 5400 else f"roughly {seconds / 3600:.1f} h"


def memory(peak: int, parts: Mapping[str, int]) -> str:
    """A peak of memory and what it is made of, for a reader."""
    named = ", ".join(f"{name} {words_for_bytes(count)}" for name, count in parts.items())
    return f"about {words_for_bytes(peak)} at the peak: {named}"


def estimate_scoring(
    skeleton: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig, device: str, text_bytes: int = 0
) -> ScoringEstimate:
    """Estimates peak memory and time of scoring.

    Args:
        skeleton: the model on the meta device, in the dtype it would be loaded in.
        shape: its shape.
        config: resolved.
        device: type of the device that would score, `cpu` or `cuda`.
        text_bytes: what the calibration text takes in main memory while it is read (`reading_bytes`).
    """
    cost, sizes = _cost_and_sizes(skeleton, shape, config)
    state, within_pass = _memory(skeleton, shape, config, device)
    seconds = _seconds(cost, skeleton, shape, sum(sizes), config, device)
    peak = shape.bytes + max(state + within_pass, text_bytes if device == "cpu" else 0)
    of_all = None if seconds is None else config.rounds * seconds
    held = (shape.bytes, state, within_pass, peak)
    besides = (forward_passes(shape, config), config.rounds, search_extent(shape, config), text_bytes)
    return ScoringEstimate(config.decided_by, device, cost.passes, *held, of_all, *besides)


def too_little_memory(skeleton: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig, device: str) -> str:
    """What to say where scoring ran out of memory: what it needs, and what lowers that, the most first."""

    def peak(config: MoreauPrunerConfig) -> int:
        return shape.bytes + sum(_memory(skeleton, shape, config, device))

    now, samples, half = peak(config), config.calibration_samples, config.sequence_length // 2
    changes: list[tuple[str, Any]] = [("batch_size", 1), ("batch_size", samples), ("state_dtype", "bfloat16")]
    changes += [("offload", "cpu"), ("offload", "disk"), ("sequence_length", half)]
    found = {f"{name}={value!r}": peak(replace(config, **{name: value})) for name, value in changes}
    lower = sorted((name for name in found if found[name] < 0.95 * now), key=lambda name: found[name])
    options = ", ".join(f"{name} (about {words_for_bytes(found[name])})" for name in lower)
    return (
        f"scoring ran out of memory; it needs about {words_for_bytes(now)} with the model; what lowers it:"
        f" {options or 'fewer layers in scope'}"
    )


def _cost_and_sizes(skeleton: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> tuple[Cost, list[int]]:
    blocks = shape.scored(config)
    names = {name for block in blocks for name in block.weight_names().values()}
    cost = config.criterion.cost(config) if blocks else Cost()
    return cost, [skeleton.get_parameter(name).numel() for name in names]


def _memory(skeleton: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig, device: str) -> tuple[int, int]:
    """Bytes that the criterion holds while a pass runs, and bytes of a pass."""
    cost, sizes = _cost_and_sizes(skeleton, shape, config)
    scope, matrix = sum(sizes), 4 * max(sizes, default=0)
    itemsize = skeleton.dtype.itemsize
    batch = _windows_at_once(cost, config)
    elsewhere = config.offload == "disk" or (config.offload == "cpu" and device != "cpu")
    state_item = 0 if elsewhere else getattr(torch, getattr(config.criterion, "state_dtype", "float32")).itemsize
    state = scope * (4 * cost.floats + state_item * cost.states)
    if cost.passes:
        blocks = shape.scored(config)
        within_pass = activation_bytes(skeleton, blocks, batch, config.sequence_length) + _MATRICES * matrix
        if getattr(config.criterion, "released", False):
            # the reference path: δ, its mean, the moved weights and the gradients of every parameter
            state = shape.parameters * (8 + itemsize)
            within_pass = max(within_pass, 4 * shape.parameters)
    else:
        within_pass = 0 if config.masks else _MATRICES * matrix
    held, in_layer = forward_bytes(skeleton, shape, config)
    within_pass = max(within_pass, in_layer + (0 if config.masks else _MATRICES * matrix))
    if reads_gradients(config):
        searched = shape.in_scope(config, "attention", "mlp")
        within_pass = max(within_pass, activation_bytes(skeleton, searched, AT_ONCE, config.sequence_length))
    state += held + (score_bytes(config, scope) if device == "cpu" else 0)
    heap = HEAP.get(device, 1.0)
    return round(heap * state), round(heap * within_pass)


def _windows_at_once(cost: Cost, config: MoreauPrunerConfig) -> int:
    return cost.batch or min(config.batch_size or config.calibration_samples, config.calibration_samples)


def activation_bytes(skeleton: Any, blocks: tuple[Block, ...], windows: int, length: int) -> int:
    """Counts what autograd saves for the backward pass of one batch, and the logits' gradients that it starts with.

    Layers that are alike save alike: one of each kind runs. The blocks are those whose weights get gradients.
    """
    names = {name for block in blocks for name in block.weight_names().values()}
    for name, parameter in skeleton.named_parameters():
        parameter.requires_grad_(name in names)
    kinds = _kinds_of_layers(skeleton)
    whole, skeleton.model.layers = skeleton.model.layers, nn.ModuleList(kinds)
    try:
        saved = _saved_bytes(skeleton, windows)
    finally:
        skeleton.model.layers = whole
    layers = sum(count * saved.get(layer, 0) for layer, count in kinds.items())
    logits = 2 * 4 * windows * _LENGTH * skeleton.config.vocab_size  # of the loss and of its softmax, float32
    return math.ceil((layers + saved.get(None, 0) + logits) * length / _LENGTH)


def _kinds_of_layers(skeleton: Any) -> dict[nn.Module, int]:
    """One layer of each kind, in order, and how many are like it: shapes, gradients, and whether any lies below."""
    found: dict[tuple[Any, ...], tuple[nn.Module, int]] = {}
    below = any(p.requires_grad for p in skeleton.model.embed_tokens.parameters())
    for layer in skeleton.model.layers:
        marks = tuple((p.shape, p.requires_grad) for p in layer.parameters())
        below = below or any(mark[1] for mark in marks)
        first, count = found.get((below, marks), (layer, 0))
        found[below, marks] = (first, count + 1)
    return dict(found.values())


def _saved_bytes(skeleton: Any, windows: int) -> dict[nn.Module | None, int]:
    """Bytes that autograd saves in each layer, and outside of all (`None`), in one forward pass on the meta device."""
    known = {parameter.untyped_storage()._cdata for parameter in skeleton.parameters()}
    alive: list[Tensor] = []  # so that no storage's address is used twice
    squares_kept = skeleton.config._attn_implementation == "eager"  # the others never hold length × length numbers
    saved: dict[nn.Module | None, int] = {}
    place: list[nn.Module | None] = [None]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        square = tensor.dim() > 2 and tensor.shape[-2:] == (_LENGTH, _LENGTH)
        if storage._cdata not in known and (squares_kept or not square):
            known.add(storage._cdata)
            alive.append(tensor)
            saved[place[0]] = saved.get(place[0], 0) + storage.nbytes()
        return tensor

    def enter(module: nn.Module, args: Any) -> None:
        place[0] = module

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        place[0] = None

    handles = [layer.register_forward_pre_hook(enter) for layer in skeleton.model.layers]
    handles += [layer.register_forward_hook(leave) for layer in skeleton.model.layers]
    ids = torch.zeros(windows, _LENGTH, dtype=torch.int64, device="meta")
    mask = torch.zeros(windows, 1, _LENGTH, _LENGTH, dtype=skeleton.dtype, device="meta")
    try:
        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with undisturbed(), plain_outputs(skeleton), saving:
            skeleton(input_ids=ids, position_ids=ids[:1], attention_mask=mask, labels=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return saved


def _seconds(
    cost: Cost, skeleton: PreTrainedModel, shape: ModelShape, scope: int, config: MoreauPrunerConfig, device: str
) -> float | None:
    tokens = config.calibration_samples * config.sequence_length
    # 2 operations per weight and token: forward, through the activations, and for the weights in scope
    gradients = 2 * cost.passes * tokens * (2 * shape.parameters + scope)
    operations, searching = (
        gradients + forward_operations(skeleton, shape, config),
        budget_operations(skeleton, shape, config),
    )
    if not operations + searching:
        return 0.0
    batch = _windows_at_once(cost, config)
    rate = product_rate(min(batch * config.sequence_length, 1024), skeleton.dtype, device)
    if rate is None:
        return None
    bound = getattr(config.budget, "minutes", None)
    searched = searching / rate if bound is None else min(searching / rate, 60 * bound)
    if not cost.noisy:
        return operations / rate + searched
    numbers = torch.empty(2**20, dtype=torch.float32, device=device)
    per_number = _time_of(lambda: standard_normal(numbers, 0), device) / 2**20
    return (
        operations / rate
        + searched
        + 2 * cost.passes * math.ceil(config.calibration_samples / batch) * scope * per_number
    )


def product_rate(rows: int, dtype: torch.dtype, device: str) -> float | None:
    """Floating-point operations per second of a matrix product here; `None` where the device is not."""
    try:
        torch.empty(0, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return None
    a, b = (torch.ones(n, 1024, dtype=dtype, device=device) for n in (rows, 1024))
    return 2 * rows * 1024 * 1024 / _time_of(lambda: a @ b.T, device)


def _time_of(action: Any, device: str) -> float:
    """Mean seconds of an action, the first run apart."""
    action()
    start, runs = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < _RATE_SECONDS or not runs:
        action()
        runs += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return passed / runs
