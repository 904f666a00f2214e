"""A plan tried out without surgery: the outputs of the units that would go are silenced, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import PlanError
from ..models.units import ModelShape, decoder_layers
from ..planning import PruningPlan


@contextmanager
def silenced(model: PreTrainedModel, shape: ModelShape, plan: PruningPlan) -> Iterator[None]:
    """Within the block the model computes what it would with the plan applied; afterwards it is bit for bit as it was.

    A unit speaks through its columns of o_proj or down_proj alone; with these at zero it is as good as removed.

    Args:
        model: the base model, all of it in memory.
        shape: its shape.
        plan: for it, of heads and MLP channels.

    Raises:
        PlanError: the plan takes hidden channels or whole layers.
    """
    if plan.hidden is not None or plan.kept_layers is not None:
        raise PlanError("only heads and MLP channels can be silenced; leave hidden and layers out of the targets")
    layers = decoder_layers(model)
    kept: list[tuple[Any, torch.Tensor, torch.Tensor]] = []  # weight, columns, their values
    try:
        with torch.no_grad():
            for block in shape.blocks:
                assert block.layer is not None  # heads and channels lie in a layer
                gone = sorted(set(range(block.total)) - set(plan.kept(block).kept))
                for cut in (cut for cut in block.cuts if gone and cut.side == "in"):
                    weight: Any = layers[block.layer].get_submodule(cut.module).weight
                    columns = block.lines(cut, weight.shape[1], weight.device)[gone].flatten()
                    kept.append((weight, columns, weight[:, columns].clone()))
                    weight[:, columns] = 0
        yield
    finally:
        with torch.no_grad():
            for weight, columns, values in kept:
                weight[:, columns] = values
