"""Layers while the engine is on: each computes with v, forward and backward, and gives the engine its gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.placement import device_of, loaded

if TYPE_CHECKING:
    from .engine import GradientEngine


@dataclass
class UsedWeight:
    """A weight in scope, and the modules that use it (two where the embedding is tied to the head)."""

    name: str
    modules: list[nn.Module] = field(default_factory=list)
    waiting: int = 0  # uses whose gradients have not come yet in this pass

    def now(self) -> Tensor:
        """w, on the device where it computes: loaded for a while if accelerate keeps it elsewhere."""
        return loaded(self.modules[0], "weight")


@dataclass(frozen=True)
class Use:
    """The forward of one module while the engine is on."""

    engine: GradientEngine
    weight: UsedWeight
    module: Any

    def __call__(self, x: Tensor) -> Tensor:
        """The module's output, computed with v."""
        function = _MovedLinear if isinstance(self.module, nn.Linear) else _MovedEmbedding
        return function.apply(x.to(device_of(self.module)), self.engine.anchor, self)


class _MovedLinear(torch.autograd.Function):
    """y = x·vᵀ + b; x is kept, and not v."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, use: Use) -> Tensor:
        ctx.use = use
        ctx.save_for_backward(x)
        return F.linear(x, use.engine.moved_weight(use.weight), _bias(use.module))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (x,), use, dy = ctx.saved_tensors, ctx.use, gradients[0]
        dx = dy @ use.engine.moved_weight(use.weight) if ctx.needs_input_grad[0] else None  # ∂x = ∂y·v
        rows, columns = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        use.engine.add(use.weight, rows, columns)  # g = ∂yᵀ·x  (out, in)
        return dx, None, None


def _bias(module: Any) -> Tensor | None:
    return None if module.bias is None else loaded(module, "bias")


def reload_forward(module: nn.Linear, x: Tensor) -> Tensor:
    """The forward of an offloaded layer out of scope."""
    return _Reloaded.apply(x.to(device_of(module)), module)


class _Reloaded(torch.autograd.Function):
    """y = x·wᵀ + b of an offloaded layer out of scope, whose w is loaded anew for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Linear) -> Tensor:
        ctx.module = module
        return F.linear(x, loaded(module, "weight"), _bias(module))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ loaded(ctx.module, "weight"), None


class _MovedEmbedding(torch.autograd.Function):
    """y = v[ids]; the ids are kept, and get no gradient."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, anchor: Tensor, use: Use) -> Tensor:
        ctx.use = use
        ctx.save_for_backward(ids)
        return F.embedding(ids, use.engine.moved_weight(use.weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (ids,), use, dy = ctx.saved_tensors, ctx.use, gradients[0]
        # each row of g is the sum of ∂y where its id stands
        g = torch.zeros(use.module.weight.shape, dtype=torch.float32, device=dy.device)
        rows = dy.reshape(-1, dy.shape[-1]).float()
        if use.module.padding_idx is not None:  # as torch's embedding: the padding's row gets none
            rows = rows * (ids.reshape(-1, 1) != use.module.padding_idx)
        use.engine.receive(use.weight, g.index_add_(0, ids.reshape(-1), rows))
        return None, None, None
