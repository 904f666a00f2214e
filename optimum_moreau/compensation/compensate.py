"""Compensates for a cut that is to be made, layer by layer, in the model that is whole as yet.

Two streams of hidden states go through the layers, that of the dense model and that of the pruned one. Of each layer,
o_proj is adjusted before down_proj, whose inputs it changes, and both before the pruned stream passes on; so errors of
earlier layers are in X, and made up for as far as they can be. A unit that goes speaks through its columns of o_proj or
down_proj alone: with these at zero the layer computes what it will when it is cut. So the dense weights are there while
they are needed, and there is never a second model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from ..activations import LayerStream, StreamedLayer
from ..config import MoreauPrunerConfig
from ..envelope import scoring_mode
from ..errors import NonFiniteError
from ..placement import loaded
from ..plan import PruningPlan
from ..registry import COMPENSATIONS
from ..undo import Keep, put, restored
from ..units import Block, ModelShape, decoder_layers
from .moments import Moments


@dataclass(frozen=True)
class Adjusted:
    """One matrix that was adjusted.

    Attributes:
        name: e.g. `layers.3.mlp.down_proj`.
        tokens: that it was fitted on.
        error_before: ‖X·Wᵀ − Y‖²/‖Y‖² of the kept columns as they were, on these tokens.
        error_after: as they are now.
    """

    name: str
    tokens: int
    error_before: float
    error_after: float


@contextmanager
def compensated(
    model: PreTrainedModel, shape: ModelShape, plan: PruningPlan, tokens: Tensor, config: MoreauPrunerConfig
) -> Iterator[tuple[Adjusted, ...]]:
    """In place: adjusts the matrices that read heads and channels; if the block ends in an error, all is as it was.

    Args:
        model: the base model; the plan is to be applied to it within the block.
        shape: its shape.
        plan: what stays, of heads, MLP channels and whole layers.
        tokens: calibration windows `(samples, length)`.
        config: resolved.

    Raises:
        NonFiniteError: what flows through a matrix is not finite, or the adjusted weights overflow its dtype.
    """
    layers = decoder_layers(model)
    with ExitStack() as stack:
        keep = stack.enter_context(restored(layers))
        with torch.inference_mode(False), scoring_mode(model), torch.no_grad():
            found = tuple(_Compensator(model, shape, plan, config).run(tokens.clone(), keep))
        yield found


class _Compensator:
    def __init__(self, model: PreTrainedModel, shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig):
        self.model, self.plan, self.config = model, plan, config
        self.step = COMPENSATIONS.get(config.compensation).step
        self.blocks = {index: [b for b in shape.blocks if b.layer == index] for index in range(shape.depth)}

    def run(self, tokens: Tensor, keep: Keep) -> Iterator[Adjusted]:
        own = _own(tokens)
        batches = list(own.split(self.config.batch_size or len(own)))
        layers = decoder_layers(self.model)
        streams = zip(
            LayerStream(self.model, batches, len(tokens)), LayerStream(self.model, batches, len(tokens)), strict=True
        )
        changed = False
        for dense, pruned in tqdm(streams, "layers", len(layers), leave=False, disable=None):
            blocks = self.blocks[dense.index]
            gone = dense.index in self.plan.removed_layers
            changed = changed or gone or any(self.plan.kept(block).removed for block in blocks)
            if gone or not changed:
                dense.pass_on()
                pruned.skip() if gone else pruned.take(dense)
                continue
            keep(dense.index, [block.reader.module for block in blocks])
            yield from self._layer(dense, pruned, blocks)

    def _layer(self, dense: StreamedLayer, pruned: StreamedLayer, blocks: Sequence[Block]) -> Iterator[Adjusted]:
        whole: dict[Any, Tensor] = {}  # the dense weights of what is adjusted already
        for block in sorted(blocks, key=lambda block: block.kind):  # attention before mlp
            name = block.reader.module
            module: Any = dense.layer.get_submodule(name)
            w = loaded(module, "weight")
            lines = block.lines(block.reader, w.shape[1], w.device)
            kept = lines[list(self.plan.kept(block).kept)].flatten()
            where = f"layers.{dense.index}.{name}"
            pairs = _pairs(dense.flows(name), pruned.flows(name), module, whole)
            moments = Moments.gather(pairs, kept, w.shape[0], where)
            before = w[:, kept].double()
            after, _ = self.step(before, moments, self.config.ridge, False)
            whole[module] = w.clone()
            new = torch.zeros_like(w).index_copy_(1, kept, after.to(w.dtype))
            if not torch.isfinite(new).all():
                raise NonFiniteError(f"{where}: the adjusted weights overflow {w.dtype}; give a larger ridge")
            put(module, new)
            yield Adjusted(where, moments.tokens, moments.error(before), moments.error(after))
        with _as_before(whole):
            dense.pass_on()
        pruned.pass_on()


def _pairs(
    dense: Iterator[tuple[Tensor, Tensor]],
    pruned: Iterator[tuple[Tensor, Tensor]],
    module: Any,
    whole: Mapping[Any, Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """X of the pruned stream and Y of the dense one, without the bias, batch by batch."""
    bias = None if module.bias is None else loaded(module, "bias")
    for x, _ in pruned:
        with _as_before(whole):
            _, y = next(dense)
        yield x, y if bias is None else y - bias


@contextmanager
def _as_before(whole: Mapping[Any, Tensor]) -> Iterator[None]:
    """The layer computes with its dense weights, for a while."""
    now = {module: loaded(module, "weight").clone() for module in whole}
    for module, weight in whole.items():
        put(module, weight)
    try:
        yield
    finally:
        for module, weight in now.items():
            put(module, weight)


def _own(tokens: Tensor) -> Tensor:
    """The windows of this process, where there are several: every n-th."""
    if dist.is_available() and dist.is_initialized():
        return tokens[dist.get_rank() :: dist.get_world_size()]
    return tokens
