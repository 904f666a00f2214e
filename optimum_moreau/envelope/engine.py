"""The scoring engine: gradients of the calibration loss at moved weights, matrix by matrix, and never all at once.

While the engine is on, every linear layer in scope (and the embedding, where it is) computes with a weight v that is
made for it alone and dropped:

    forward    v = w + δ + z        y = x·vᵀ
    backward   v again, from the same seed     ∂x = ∂y·v     g = ∂yᵀ·x  →  on_gradient(name, g), and g is dropped

So the model's weights are neither overwritten nor copied, and no more than one matrix's gradient exists, unless several
micro-batches or draws make one gradient: then one float32 accumulator per weight. Autograd keeps no graph below the
first layer in scope. One code path serves CPU and CUDA; nothing waits for the device but the loss of each micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..distributed import add_up, processes
from ..errors import NonFiniteError, UnsupportedModelError
from ..models.hooks import first_non_finite
from ..models.placement import device_of, input_device
from ..models.undisturbed import plain_outputs, undisturbed
from .layers import Use, UsedWeight, reload_forward

# ∇f in pieces: name, g of the weight's shape in any dtype, and the factor that makes it the gradient.
OnGradient = Callable[[str, Tensor, float], None]
# A weight's name, ∂y `(tokens, out)` and x `(tokens, in)` of a pass, and what makes ∂y that of a summed loss.
OnFlow = Callable[[str, Tensor, Tensor, float], None]
# Where the gradient of a weight, of that dtype, may be added as it is made; `None`: it is to be given to `OnGradient`.
Into = Callable[[str, torch.dtype], "Sum | None"]
# v for a weight: name, w, and a buffer to write it to.
MovedWeight = Callable[[str, Tensor, Tensor], Tensor]
FLOAT16_SCALE = 2.0**12
NOT_FINITE = "is not finite; load the model in bfloat16 or float32"


@dataclass(frozen=True)
class Micro:
    """One forward and backward pass.

    Attributes:
        batch: token ids `(windows, length)`.
        share: its part of the gradient.
        moved: the weights it computes with; `None`: w.
        label: where the computation stands, for messages.
    """

    batch: Tensor
    share: float
    moved: MovedWeight | None
    label: str


@dataclass(frozen=True)
class Sum:
    """S ← keep·S + times·g, computed by the matrix product that makes g, so that g itself never exists.

    Attributes:
        tensor: S, of the weight's shape.
        keep: the factor of what is there.
        times: the factor of the gradient.
        done: called afterwards, with S.
    """

    tensor: Tensor
    keep: float
    times: float
    done: Callable[[Tensor], None]


@dataclass(frozen=True)
class _Running:
    """The pass that runs: whether it is the last of its gradient, the only one, and one of several processes'."""

    micro: Micro
    last: bool
    alone: bool
    shared: bool
    on_gradient: OnGradient
    into: Into | None
    on_flow: OnFlow | None


class GradientEngine:
    """Computes gradients of the mean next-token loss with respect to some weights of a model.

    Args:
        model: a causal language model in `scoring_mode`.
        names: the weights in scope, each of a linear layer or of the embedding.
    """

    def __init__(self, model: PreTrainedModel, names: Sequence[str]):
        self.model = model
        self.weights = {name: UsedWeight(name) for name in names}
        by_identity = {id(model.get_parameter(name)): self.weights[name] for name in names}
        for module in model.modules():
            owner = by_identity.get(id(getattr(module, "weight", None)))
            if owner is not None:
                if not isinstance(module, (nn.Linear, nn.Embedding)):
                    raise UnsupportedModelError(f"{owner.name}: a {type(module).__name__} cannot be scored")
                owner.modules.append(module)
        scored = {module for weight in self.weights.values() for module in weight.modules}
        linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in scored]
        # autograd would keep the loaded weights of these until the backward pass
        self._reloaded = [module for module in linear if module.weight.is_meta]
        self.processes = processes()
        self._loss_scale: float | None = None if model.dtype == torch.float16 else 1.0
        # so that outputs need gradients where inputs do not
        self.anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._checks: dict[str, Tensor] = {}
        self._now: _Running | None = None

    def device(self, name: str) -> torch.device:
        """Where a weight computes."""
        return device_of(self.weights[name].modules[0])

    def weight(self, name: str) -> Tensor:
        """Returns w, `(out, in)`, on the device where it computes."""
        return self.weights[name].now()

    def run(
        self,
        micros: Sequence[Micro],
        on_gradient: OnGradient,
        *,
        into: Into | None = None,
        everywhere: bool = True,
        on_flow: OnFlow | None = None,
    ) -> float:
        """One gradient from some passes: `on_gradient` gets each weight's, in the order of the backward pass.

        Args:
            micros: the passes; their shares over all processes add up to 1.
            on_gradient: is given g and a factor, once for each weight; it may not keep g.
            into: where a weight's gradient is added instead, if one pass and one use of the weight make it.
            everywhere: the passes of all processes make one gradient; otherwise each makes its own.
            on_flow: is given what makes the gradient, pass by pass and use by use; it may not keep it.

        Returns:
            The loss: the sum of all passes' losses by their shares.

        Raises:
            NonFiniteError: the loss or a gradient is NaN or infinite; says where.
        """
        if self._loss_scale is None:
            self._loss_scale = self._chosen_loss_scale(micros[0])
        total = 0.0
        shared = everywhere and self.processes > 1
        self._checks.clear()
        with self._moved_forward():
            for i, micro in enumerate(micros):
                last = i == len(micros) - 1
                alone = len(micros) == 1 and not shared
                self._now = _Running(micro, last, alone, shared, on_gradient, into, on_flow)
                for weight in self.weights.values():
                    weight.waiting = len(weight.modules)
                total += micro.share * self._pass(micro)
        self._check_gradients(micros[-1].label)
        return self._sum_of(total) if shared else total

    def _chosen_loss_scale(self, micro: Micro) -> float:
        """For a float16 model: 2^12, or less by factors of 16, so that at w no gradient overflows 16 times as much.

        Found at w itself, so that a run that is gone on with finds the same.
        """
        self._loss_scale = 16 * FLOAT16_SCALE
        while True:
            try:
                self.run([replace(micro, moved=None)], lambda name, g, scale: None, everywhere=False)
                return max(1.0, self._loss_scale / 16)
            except NonFiniteError:
                if self._loss_scale <= 1:
                    raise
                self._loss_scale /= 16

    def _pass(self, micro: Micro) -> float:
        ids = micro.batch.to(input_device(self.model))
        with torch.enable_grad():
            loss = next_token_loss(self.model, ids, micro.label)
            scaled = loss * (self._loss_scale or 1.0)
        value = float(loss.detach())
        finite = math.isfinite(value)
        if self._now is not None and self._now.shared and (self._now.last or not finite):
            # once in each process, however many passes it makes: all stop if one will not sum its gradients
            others = self._sum_of(float(not finite))
            if finite and others:
                raise NonFiniteError(f"{micro.label}: the loss of another process is not finite; see its message")
        if not finite:
            forward = partial(self.model, input_ids=ids, labels=ids, use_cache=False)
            raise NonFiniteError(f"{micro.label}: the loss is {value}; {first_non_finite(self.model, forward)}")
        scaled.backward()
        return value

    def _check_gradients(self, label: str) -> None:
        devices: dict[torch.device, list[str]] = {}
        for name, check in self._checks.items():
            devices.setdefault(check.device, []).append(name)
        for names in devices.values():
            finite = torch.isfinite(torch.stack([self._checks[name] for name in names]))
            if not finite.all():  # the one wait, per device, for all gradients of a run
                name = names[int(finite.logical_not().nonzero()[0])]
                raise NonFiniteError(f"{label}: the gradient of {name} {NOT_FINITE}")

    def _sum_of(self, number: float) -> float:
        """The sum of a number over all processes, in float32."""
        tensor = torch.tensor(number, dtype=torch.float32, device=input_device(self.model))
        add_up(tensor)
        return float(tensor)

    # what the patched layers call

    def moved_weight(self, weight: UsedWeight) -> Tensor:
        """v of the pass that runs."""
        assert self._now is not None  # within `run`
        w = weight.now()
        moved = self._now.micro.moved
        return w if moved is None else moved(weight.name, w, self.buffer("v", tuple(w.shape), w.dtype, w.device))

    def add(self, weight: UsedWeight, rows: Tensor, columns: Tensor) -> None:
        """Makes g = rowsᵀ·columns, one use's part of a weight's gradient, and takes it."""
        assert self._now is not None  # within `run`
        if self._now.on_flow is not None:
            targets = self._now.micro.batch.numel() - len(self._now.micro.batch)
            self._now.on_flow(weight.name, rows, columns, targets / (self._loss_scale or 1.0))
        if self._now.into is not None and self._now.alone and len(weight.modules) == 1:
            found = self._now.into(weight.name, rows.dtype)
            if found is not None:
                times = found.times * self._now.micro.share / (self._loss_scale or 1.0)
                found.tensor.addmm_(rows.T, columns, beta=found.keep, alpha=times)
                self._checks[weight.name] = found.tensor.sum()
                found.done(found.tensor)
                return
        g = self.buffer("g", (rows.shape[1], columns.shape[1]), rows.dtype, rows.device)
        self.receive(weight, torch.mm(rows.T, columns, out=g))

    def receive(self, weight: UsedWeight, g: Tensor) -> None:
        """Takes one use's part of a weight's gradient, and passes the gradient on when it is complete."""
        assert self._now is not None  # within `run`
        weight.waiting -= 1
        share = self._now.micro.share / (self._loss_scale or 1.0)
        if self._now.alone and len(weight.modules) == 1:
            self._checks[weight.name] = g.sum(dtype=torch.float32)
            self._now.on_gradient(weight.name, g, share)
            return
        if weight.name in self._sums:
            self._sums[weight.name].add_(g, alpha=share)
        else:
            self._sums[weight.name] = g.to(torch.float32, copy=True).mul_(share)
        if self._now.last and not weight.waiting:
            total = self._sums.pop(weight.name)
            if self._now.shared:
                add_up(total)
            self._checks[weight.name] = total.sum()
            self._now.on_gradient(weight.name, total, 1.0)

    def buffer(self, use: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A place for one matrix, the same for every weight: what is in it lasts until the next one is asked for."""
        key = (use, dtype, device)
        if key not in self._buffers:
            largest = max(self.model.get_parameter(name).numel() for name in self.weights)
            self._buffers[key] = torch.empty(largest, dtype=dtype, device=device)
        return self._buffers[key][: math.prod(shape)].view(shape)

    @contextmanager
    def _moved_forward(self) -> Iterator[None]:
        """In place, for a while: the modules in scope compute with moved weights."""
        forwards: dict[nn.Module, Any] = {linear: partial(reload_forward, linear) for linear in self._reloaded}
        for weight in self.weights.values():
            forwards |= {module: Use(self, weight, module) for module in weight.modules}
        before = {module: vars(module).get("forward") for module in forwards}
        try:
            for module, forward in forwards.items():
                vars(module)["forward"] = forward
            yield
        finally:
            for module, forward in before.items():
                del vars(module)["forward"]
                if forward is not None:
                    vars(module)["forward"] = forward
            self._now = None
            self._sums.clear()


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter requires a gradient; afterwards everything is as it was, also on an error.

    What the process or the model's config is set to decides nothing (models/undisturbed.py).
    """
    training = {module: module.training for module in model.modules()}
    # by name: a parameter may be replaced meanwhile; those of inference mode never can require one
    requires = {name: p.requires_grad for name, p in model.named_parameters() if not p.is_inference()}
    try:
        model.eval()
        for name in requires:
            model.get_parameter(name).requires_grad_(False)
        with undisturbed(), plain_outputs(model):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for name, flag in requires.items():
            model.get_parameter(name).requires_grad_(flag)


def next_token_loss(model: PreTrainedModel, ids: Tensor, label: str) -> Tensor:
    """The mean over windows and targets of −log p(x_{t+1} | x_≤t) (Eq. 1), with its graph, for ids `(windows, length)`.

    Raises:
        UnsupportedModelError: no gradient reaches what should have one.
    """
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    if not loss.requires_grad:
        raise UnsupportedModelError(
            f"{label}: no gradient of the loss reaches the weights in scope (a forward that detaches, or"
            " runs under torch.no_grad); take that out, or a criterion without gradients (magnitude, random)"
        )
    return loss
