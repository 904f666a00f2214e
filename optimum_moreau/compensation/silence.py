"""Which matrices a compensation adjusts, where in o_proj and down_proj is what stays, and how the rest falls silent.

A head or channel that goes speaks through its columns alone, and a hidden channel hears through its row alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.placement import Keep, loaded, parameter_names, put
from ..models.units import Block, ModelShape, decoder_layers
from ..planning import PruningPlan


def reached(shape: ModelShape, plan: PruningPlan) -> dict[int, list[Block]]:
    """Layer → its blocks, attention first, that lose something or hear of an earlier change; none of layers that go."""
    changed = plan.narrows
    found: dict[int, list[Block]] = {index: [] for index in range(shape.depth)}
    for index, own in found.items():
        if index in plan.removed_layers:
            changed = True
            continue
        for block in sorted((b for b in shape.blocks if b.layer == index), key=lambda block: block.kind):
            changed = changed or plan.kept(block).removed > 0
            if changed:
                own.append(block)
    return found


def rows(plan: PruningPlan, w: Tensor) -> Tensor:
    """Of a weight or its bias: the rows that write to hidden channels which stay, int64."""
    if plan.hidden is None:
        return torch.arange(w.shape[0], dtype=torch.int64, device=w.device)
    return torch.tensor(plan.hidden.kept, dtype=torch.int64, device=w.device)


def columns(block: Block, plan: PruningPlan, w: Tensor) -> Tensor:
    """Of the weight that reads a block: the columns of the units that stay, int64."""
    lines = block.lines(block.reader, w.shape[1], w.device)
    return lines[list(plan.kept(block).kept)].flatten()


def stays(block: Block, plan: PruningPlan, w: Tensor) -> tuple[Tensor, ...]:
    """What stays, as an index into that weight, or into its bias."""
    kept = rows(plan, w)
    return (kept[:, None], columns(block, plan, w)) if w.dim() == 2 else (kept,)


def only(w: Tensor, where: tuple[Tensor, ...], values: Tensor) -> Tensor:
    """Values of what stays, and zeros, like a weight or bias."""
    return torch.zeros_like(w).index_put_(where, values.to(w.dtype))


def silence(model: PreTrainedModel, shape: ModelShape, plan: PruningPlan, keep: Keep) -> None:
    """In place: what goes of heads, MLP channels and hidden channels becomes zero in o_proj and down_proj."""
    layers = decoder_layers(model)
    for index in set(range(shape.depth)) - set(plan.removed_layers):
        blocks = [b for b in shape.blocks if b.layer == index and (plan.narrows or plan.kept(b).removed)]
        if blocks:
            keep(index, [block.reader.module for block in blocks])
        for block in blocks:
            module: Any = layers[index].get_submodule(block.reader.module)
            for name in parameter_names(module):
                value = loaded(module, name)
                where = stays(block, plan, value)
                put(module, only(value, where, value[where]), name)
