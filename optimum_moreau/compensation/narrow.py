"""Lets a model of dense shape compute as one of fewer hidden channels: by hooks, so that no weight changes.

Of D channels D′ stay, K, and the stream x is zero outside K. With s = √(D/D′) a dense norm gives what the cut one will:

    s⁻¹·w·(s·x)/√(Σ_D (s·x)²/D + ε)  =  w·x/√(Σ_K x²/D′ + ε)

Folded norms average over D also when they are cut, so that s = 1. The hooks see to the stream's start and to its norms;
that o_proj and down_proj write zeros outside K is for their rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.units import EMBEDDINGS, ModelShape
from ..planning import PruningPlan


@dataclass
class Narrow:
    """Whether the model computes so now (`on`); otherwise the hooks do nothing."""

    on: bool = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the model computes with all its channels."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before


@contextmanager
def narrowed(model: PreTrainedModel, shape: ModelShape, plan: PruningPlan) -> Iterator[Narrow]:
    """In place, for a while: the stream and its norms have the hidden channels that the plan keeps; cut or not yet."""
    narrow = Narrow()
    with ExitStack() as stack:
        if plan.narrows:
            assert plan.hidden is not None and shape.hidden is not None  # so there is something to go
            kept = plan.hidden
            gone = torch.ones(kept.total, dtype=torch.bool, device="cpu")
            gone[list(kept.kept)] = False
            start = model.get_submodule(EMBEDDINGS)
            stack.callback(start.register_forward_hook(_start(gone, narrow)).remove)
            if not plan.config.get("fold_norms"):
                widen, shrink = _norm(kept.total, math.sqrt(kept.total / len(kept.kept)), narrow)
                for norm in map(model.get_submodule, shape.hidden.vectors):
                    stack.callback(norm.register_forward_pre_hook(widen).remove)
                    stack.callback(norm.register_forward_hook(shrink).remove)
        yield narrow


def _start(gone: Tensor, narrow: Narrow) -> Any:
    def silence(embeddings: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not narrow.on or output.shape[-1] != len(gone):  # of a model that is cut by now
            return None
        return output.masked_fill(gone.to(output.device), 0)

    return silence


def _norm(width: int, s: float, narrow: Narrow) -> tuple[Any, Any]:
    def widen(norm: Any, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        if not narrow.on or args[0].shape[-1] != width:
            return None
        x = args[0]  # at least fp32: what 16 bits would round here the cut norm does not
        return (x.to(torch.promote_types(x.dtype, torch.float32)) * s,)

    def shrink(norm: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not narrow.on or output.shape[-1] != width:
            return None
        return (output / s).to(norm.weight.dtype)

    return widen, shrink
