"""Low-rank adapters in training beside a model's matrices, and what they show of its weights (lora.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MoreauPrunerConfig
from ..config.quantities import nearest_fewer
from ..distributed import generator
from ..envelope import FLOAT16_SCALE, next_token_loss
from ..errors import ConfigError, NonFiniteError, UnsupportedModelError
from ..models.families import Cut
from ..models.placement import device_of, input_device, is_offloaded
from ..models.progress import progress
from ..models.units import LAYERS, Block
from .scoring_run import Scoring

SCALE, EVERY = 2.0, 10  # α/r as the paper's r 8, α 16; steps between two silencings

# Which units still speak: of each block by its name, bool `(units,)`.
Speaking = dict[str, Tensor]


@dataclass
class _Adapter:
    """s·BA beside one matrix, and what it has shown."""

    module: Any
    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    uses: list[tuple[Block, Cut]]  # the units' parts in this matrix; one, but for fused ones and hidden channels
    mean: Tensor  # Ḡ, (out, in)

    def importance(self, w: Tensor, grad_a: Tensor, grad_b: Tensor) -> Tensor:
        """I = |ĝ ⊙ (W + s·BA)|, `(out, in)`."""
        guided = grad_b @ self.a + self.b @ grad_a - grad_b @ grad_a  # ĝ
        return guided.mul_(torch.addmm(w.float(), self.b, self.a, alpha=SCALE)).abs_()


def score(run: Scoring) -> None:
    """Emits Ḡ after T steps."""
    c = run.config.criterion
    if run.engine.processes > 1:
        raise ConfigError("lora trains its adapters in one process; run without torchrun or accelerate launch")
    if is_offloaded(run.model):
        raise UnsupportedModelError(
            "lora trains on the whole model; load it without offload, or take another criterion"
        )
    adapters = _adapters(run)
    speaking = {block.where: torch.ones(block.total, dtype=torch.bool, device="cpu") for block in run.blocks}
    trained = [tensor for one in adapters.values() for tensor in (one.a, one.b)]
    optimizer = torch.optim.AdamW(trained, lr=c.learning_rate, weight_decay=0.0)
    scale = FLOAT16_SCALE if run.model.dtype == torch.float16 else 1.0
    batches = progress(islice(cycle(run.batches), c.steps), "LoRA steps", c.steps)
    with _attached(run, adapters, speaking):
        for step, batch in enumerate(batches, start=1):
            scale = _gradients(run, batch, trained, scale, f"lora, step {step}")
            for name, one in adapters.items():
                _observe(one, run.engine.weight(name), speaking, c.decay)
            optimizer.step()
            optimizer.zero_grad()
            if (step % EVERY == 0 or step == c.steps) and _silences(run.config):
                _silence(run, adapters, speaking, 1 - (1 - step / c.steps) ** 3)
    for name, one in adapters.items():
        run.emit(name, one.mean)


def _adapters(run: Scoring) -> dict[str, _Adapter]:
    """One for every linear layer inside the decoder layers that is in scope: A drawn, by seed and name; B zero."""
    rank = run.config.criterion.rank
    uses: dict[str, list[tuple[Block, Cut]]] = {}
    for block in run.blocks:
        for cut, name in block.weight_names().items():
            if name.startswith(LAYERS):
                uses.setdefault(name, []).append((block, cut))
    found = {}
    for name, parts in uses.items():
        module: Any = run.model.get_submodule(name.removesuffix(".weight"))
        (out, width), device = module.weight.shape, device_of(module)
        drawn = torch.rand(rank, width, generator=generator(run.config.seed, name), dtype=torch.float32, device="cpu")
        a = ((drawn * 2 - 1) / math.sqrt(width)).to(device).requires_grad_()
        b = torch.zeros(out, rank, dtype=torch.float32, device=device, requires_grad=True)
        own = [part for part in parts if part[0].kind != "hidden"] or parts
        found[name] = _Adapter(module, a, b, own, torch.zeros(out, width, dtype=torch.float32, device=device))
    return found


def _gradients(run: Scoring, batch: Tensor, trained: list[Tensor], scale: float, label: str) -> float:
    """Computes the gradients of A and B; returns the loss scale, lower by factors of 16 where they overflowed.

    Raises:
        NonFiniteError: the loss or a gradient is NaN or infinite.
    """
    ids = batch.to(input_device(run.model))
    while True:
        with torch.enable_grad():
            loss = next_token_loss(run.model, ids, label)
            if not torch.isfinite(loss):
                raise NonFiniteError(f"{label}: the loss is {float(loss.detach())}; give a smaller learning_rate")
            (loss * scale).backward()
        for tensor in trained:
            if tensor.grad is None:
                raise UnsupportedModelError(f"{label}: no gradient reaches some linear layer; take another criterion")
            tensor.grad.div_(scale)
        if all(torch.isfinite(tensor.grad).all() for tensor in trained if tensor.grad is not None):
            return scale
        if scale <= 1:
            raise NonFiniteError(f"{label}: a gradient is not finite; load the model in bfloat16 or float32")
        scale = max(1.0, scale / 16)
        for tensor in trained:
            tensor.grad = None


@contextmanager
def _attached(run: Scoring, adapters: dict[str, _Adapter], speaking: Speaking) -> Iterator[None]:
    """Within the block the layers compute with their adapters, and silenced units are not heard."""
    handles = []
    for one in adapters.values():
        handles.append(one.module.register_forward_hook(_adapted(one)))
        handles += [
            one.module.register_forward_pre_hook(_without(block, cut, speaking))
            for block, cut in one.uses
            if cut.side == "in" and block.kind != "hidden"
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adapted(adapter: _Adapter) -> Any:
    """y + s·(x·Aᵀ)·Bᵀ."""

    def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        low = F.linear(args[0].to(adapter.a), adapter.a)
        return output + (SCALE * F.linear(low, adapter.b)).to(output)

    return forward


def _without(block: Block, cut: Cut, speaking: Speaking) -> Any:
    """x, with zeros where the silenced units speak."""

    def forward(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        own = speaking[block.where]
        if own.all():
            return None
        x, *others = args
        return (x * block.spread(cut, own.to(x.dtype), module.weight)[0], *others)

    return forward


def _observe(adapter: _Adapter, w: Tensor, speaking: Speaking, decay: float) -> None:
    """Ḡ ← λ·Ḡ + (1 − λ)·I/‖I_units‖₂; I of silenced units is 0."""
    assert adapter.a.grad is not None and adapter.b.grad is not None  # after the backward pass
    found = adapter.importance(w, adapter.a.grad, adapter.b.grad)
    for block, cut in adapter.uses:
        own = speaking[block.where].to(found.device)
        norm = (block.sum_per_unit(cut, found) * own).norm()
        found.mul_(block.spread(cut, own / norm.clamp(min=torch.finfo(torch.float32).tiny), found))
    adapter.mean.mul_(decay).add_(found, alpha=1 - decay)


def _silences(c: MoreauPrunerConfig) -> bool:
    """Whether every layer gives the same share, so that it is known which units are on the way out."""
    return not c.masks and c.budget.name == "uniform" and set(c.targets) <= {"attention", "mlp"}


def _silence(run: Scoring, adapters: dict[str, _Adapter], speaking: Speaking, part: float) -> None:
    """Silences that part of the units of every block that are to go, those silenced before among them."""
    sums: dict[str, Tensor] = {}
    for one in adapters.values():
        for block, cut in one.uses:
            sums[block.where] = sums.get(block.where, 0) + block.sum_per_unit(cut, one.mean).cpu()
    for block in run.blocks:
        own = speaking[block.where]
        order = sums[block.where].masked_fill(~own, -1).argsort()
        own[order[: min(nearest_fewer(part * _share(run, block.kind) * block.total), block.total - 1)]] = False


def _share(run: Scoring, kind: str) -> float:
    """p, of the heads or of the channels, from whatever target size is given."""
    c = run.config
    if c.unit_ratio is not None:
        return c.unit_ratios[kind]
    total = sum(parameter.numel() for parameter in run.model.parameters())
    removed = (c.pruning_ratio or 0.0) * total
    if c.target_parameters is not None:
        removed = total - c.target_parameters
    elif c.target_bytes is not None:
        removed = total - c.target_bytes / run.model.dtype.itemsize
    scope = sum(block.total * block.unit_parameters for block in run.blocks)
    return min(max(removed / scope, 0.0), 1.0)
