"""LoRAPrune: weights as low-rank adapters in training feel them, without a gradient of the weights themselves.

Every matrix W in scope computes with W + s·BA, B of zeros at first, and T steps of AdamW train A and B on the
calibration text. Each step changes BA by about −ĝ, which stands for the gradient of W:

    ĝ = ∇B·A + B·∇A − ∇B·∇A          I = |ĝ ⊙ (W + s·BA)|          Ḡ ← λ·Ḡ + (1 − λ)·I/‖I_units‖₂

I_units is the vector of the units' sums of I in this matrix, so that every matrix of a unit counts alike. Every tenth
step the units of the lowest Ḡ are silenced, p(t) of each block's, and learn no more; their Ḡ fades, so they stay last:

    p(t) = p·(1 − (1 − t/T)³)

p is the share of the units in scope that is to go. Of masks of single weights nothing is silenced on the way. The model
itself is never changed, and the adapters are dropped: only the score is taken from them. The published code leaves the
first tenth of the layers and the last one alone; here the scope says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..config import MoreauPrunerConfig
from ..errors import ConfigError, NonFiniteError, UnsupportedModelError
from ..families import Cut
from ..placement import device_of, input_device, is_offloaded
from ..units import LAYERS, Block
from .criterion import Cost, Criterion, Scoring
from .papers import LORA_PRUNE

SCALE, EVERY = 2.0, 10  # α/r as the paper's r 8, α 16; steps between two silencings
_FLOAT16_SCALE = 2.0**12


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
    c = run.config
    assert c.steps is not None and c.learning_rate is not None and c.decay is not None  # resolved
    if run.engine.processes > 1:
        raise ConfigError("lora trains its adapters in one process; run without torchrun or accelerate launch")
    if is_offloaded(run.model):
        raise UnsupportedModelError(
            "lora trains on the whole model; load it without offload, or take another criterion"
        )
    adapters = _adapters(run)
    speaking = {block.where: torch.ones(block.total, dtype=torch.bool) for block in run.blocks}
    trained = [tensor for one in adapters.values() for tensor in (one.a, one.b)]
    optimizer = torch.optim.AdamW(trained, lr=c.learning_rate, weight_decay=0.0)
    scale = _FLOAT16_SCALE if run.model.dtype == torch.float16 else 1.0
    batches = tqdm(islice(cycle(run.batches), c.steps), "steps", c.steps, leave=False, disable=None)
    with _attached(run, adapters, speaking):
        for step, batch in enumerate(batches, start=1):
            ids = batch.to(input_device(run.model))
            with torch.enable_grad():
                loss = run.model(input_ids=ids, labels=ids, use_cache=False).loss
                _check(loss, step)
                (loss * scale).backward()
            for tensor in trained:
                assert tensor.grad is not None  # every adapter is in the forward pass
                tensor.grad.div_(scale)
            for name, one in adapters.items():
                _observe(one, run.engine.weight(name), speaking, c.decay)
            optimizer.step()
            optimizer.zero_grad()
            if step % EVERY == 0 and not c.masks:
                _silence(run, adapters, speaking, _share(run) * (1 - (1 - step / c.steps) ** 3))
    for name, one in adapters.items():
        run.emit(name, one.mean)


def _adapters(run: Scoring) -> dict[str, _Adapter]:
    """One for every linear layer inside the decoder layers that is in scope: A drawn, by seed and name; B zero."""
    assert run.config.lora_rank is not None  # resolved
    uses: dict[str, list[tuple[Block, Cut]]] = {}
    for block in run.blocks:
        for cut, name in block.weight_names().items():
            if name.startswith(LAYERS):
                uses.setdefault(name, []).append((block, cut))
    found = {}
    for name, parts in uses.items():
        module: Any = run.model.get_submodule(name.removesuffix(".weight"))
        out, width = module.weight.shape
        digest = hashlib.sha256(f"{run.config.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        a = (torch.rand(run.config.lora_rank, width, generator=generator) * 2 - 1) / math.sqrt(width)
        device = device_of(module)
        own = [part for part in parts if part[0].kind != "hidden"] or parts
        a, b = (one.to(device).requires_grad_() for one in (a, torch.zeros(out, run.config.lora_rank)))
        found[name] = _Adapter(module, a, b, own, torch.zeros(out, width, device=device))
    return found


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
        low = F.linear(args[0].to(adapter.a.dtype), adapter.a)
        return output + (SCALE * F.linear(low, adapter.b)).to(output.dtype)

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


def _silence(run: Scoring, adapters: dict[str, _Adapter], speaking: Speaking, share: float) -> None:
    """Silences that share of the units of every block, those silenced before among them."""
    sums: dict[str, Tensor] = {}
    for one in adapters.values():
        for block, cut in one.uses:
            sums[block.where] = sums.get(block.where, 0) + block.sum_per_unit(cut, one.mean).cpu()
    for block in run.blocks:
        if block.kind == "hidden":
            continue
        own = speaking[block.where]
        order = sums[block.where].masked_fill(~own, -1).argsort()
        own[order[: min(int(share * block.total), block.total - 1)]] = False


def _share(run: Scoring) -> float:
    """p: the share of the units in scope that is to go, from whatever target size is given."""
    c, parameters = run.config, list(run.model.parameters())
    if c.unit_ratio is not None:
        return c.unit_ratio if isinstance(c.unit_ratio, float) else sum(c.unit_ratio) / len(c.unit_ratio)
    total = sum(parameter.numel() for parameter in parameters)
    removed: float
    if c.target_parameters is not None:
        removed = total - c.target_parameters
    elif c.target_bytes is not None:
        removed = total - c.target_bytes / run.model.dtype.itemsize
    else:
        removed = (c.pruning_ratio or 0.0) * total
    scope = sum(block.total * block.unit_parameters for block in run.blocks if block.kind != "hidden")
    return min(max(removed / scope, 0.0), 1.0) if scope else 0.0


def _check(loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise NonFiniteError(f"lora, step {step}: the loss is {float(loss.detach())}; give a smaller learning_rate")


def _cost(config: MoreauPrunerConfig) -> Cost:
    batch = config.batch_size or config.calibration_samples
    return Cost(passes=math.ceil((config.steps or 0) * batch / config.calibration_samples), floats=1)


LORA = Criterion(
    name="lora",
    summary="|ĝ⊙(W+BA)|, ĝ from adapters in training, units silenced step by step (LoRAPrune)",
    paper=LORA_PRUNE,
    score=score,
    needs=("gradients",),
    defaults={"steps": 100, "lora_rank": 8, "learning_rate": 1e-4, "decay": 0.9},
    cost=_cost,
)
