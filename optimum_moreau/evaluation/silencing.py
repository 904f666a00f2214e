"""A plan tried out without surgery: the outputs of the units that would go are silenced, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from ..errors import PlanError
from ..models.hooks import silent
from ..models.units import ModelShape, decoder_layers
from ..planning import PruningPlan


@contextmanager
def silenced(model: PreTrainedModel, shape: ModelShape, plan: PruningPlan) -> Iterator[None]:
    """Within the block the model computes what it would with the plan applied; its weights are never changed.

    Args:
        model: the base model.
        shape: its shape.
        plan: for it, of heads and MLP channels.

    Raises:
        PlanError: the plan takes hidden channels or whole layers.
    """
    if plan.hidden is not None or plan.kept_layers is not None:
        raise PlanError("only heads and MLP channels can be silenced; leave hidden and layers out of the targets")
    layers = decoder_layers(model)
    gone = [sorted(set(range(block.total)) - set(plan.kept(block).kept)) for block in shape.blocks]
    with silent((layers[b.layer or 0], b, own) for b, own in zip(shape.blocks, gone, strict=True) if own):
        yield
