"""Compensates for a cut that is to be made, layer by layer, in the model that is whole as yet.

Two streams of hidden states go through the layers, that of the dense model and that of the pruned one. Of each layer,
o_proj is adjusted before down_proj, whose inputs it changes, and both before the pruned stream passes on; so errors of
earlier layers are in X, and made up for as far as they can be. A unit that goes speaks through its columns of o_proj or
down_proj alone: with these at zero the layer computes what it will when it is cut. So the dense weights are there while
they are needed, and there is never a second model. Where hidden channels go, the pruned stream is zero in them: its
start and its norms by hooks (narrow.py), o_proj and down_proj by rows of zeros, and the other rows are fitted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..data.windows import CalibrationRecord, CalibrationSet
from ..distributed import is_distributed, processes, share
from ..envelope import scoring_mode
from ..errors import DataError, NonFiniteError
from ..models.placement import Keep, loaded, parameter_names, put, restored
from ..models.progress import progress
from ..models.stream import LayerStream, StreamedLayer
from ..models.units import Block, ModelShape, decoder_layers
from ..planning import PruningPlan
from .biases import with_biases
from .moments import Moments
from .narrow import Narrow, narrowed
from .silence import columns, only, reached, rows, silence, stays

logger = logging.getLogger(__name__)

# Module → name → the dense weight and bias.
Dense = dict[Any, dict[str, Tensor]]
# Inputs and outputs of a matrix, batch by batch.
_Flows = Iterator[tuple[Tensor, Tensor]]


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


@dataclass(frozen=True)
class CompensationRecord:
    """What a saved summary says of a compensation, as `described` writes it.

    Attributes:
        step: its name.
        ridge: λ, where it has one.
        intercept: whether biases were fitted.
        summary: what it does.
        paper: its source.
        calibration: of its windows.
        matrices: those that were adjusted.
    """

    step: str
    ridge: float | None
    intercept: bool
    summary: str
    paper: str
    calibration: CalibrationRecord
    matrices: tuple[Adjusted, ...]


def described(config: MoreauPrunerConfig, text: CalibrationSet, adjusted: tuple[Adjusted, ...]) -> dict[str, Any]:
    """What was done, for the summary."""
    compensation = config.compensation
    return {
        "step": compensation.name,
        "ridge": compensation.damping,
        "intercept": compensation.fits_biases,
        "summary": compensation.summary,
        "paper": compensation.paper,
        "calibration": text.to_dict(),
        "matrices": [asdict(one) for one in adjusted],
    }


@contextmanager
def compensated(
    model: PreTrainedModel,
    shape: ModelShape,
    plan: PruningPlan,
    tokens: Tensor | None,
    config: MoreauPrunerConfig,
    *,
    undone: bool = False,
    distinct: int | None = None,
) -> Iterator[tuple[Adjusted, ...]]:
    """In place: silences what goes, and adjusts what stays; if the block ends in an error, all of that is undone.

    Within the block the model computes what it will once the plan is applied; layers that go whole still compute.

    Args:
        model: the base model.
        shape: its shape.
        plan: what stays.
        tokens: calibration windows `(samples, length)`; may be `None` for `compensation="none"`.
        config: resolved.
        undone: it is undone in any case.
        distinct: tokens of the text that the windows cover, where they overlap; for a warning.

    Raises:
        UnsupportedModelError: an intercept is asked for, and the model is offloaded.
        NonFiniteError: what flows through a matrix is not finite, or the adjusted weights overflow its dtype.
    """
    with ExitStack() as stack:
        if config.compensation.fits_biases and plan.removes:
            stack.enter_context(with_biases(model, shape, undone=undone))
        keep = stack.enter_context(restored(decoder_layers(model), always=undone))
        narrow = stack.enter_context(narrowed(model, shape, plan))
        adjusted: tuple[Adjusted, ...] = ()
        with torch.inference_mode(False), scoring_mode(model), torch.no_grad():
            if not config.compensation.fits:
                silence(model, shape, plan, keep)
            elif tokens is None:
                raise DataError(f"compensation: '{config.compensation.name}' reads calibration text; give some")
            else:
                compensator = _Compensator(model, shape, plan, config, narrow)
                compensator.warn_of_few(tokens, distinct)
                adjusted = tuple(compensator.run(tokens.clone(), keep))
        yield adjusted


class _Compensator:
    def __init__(
        self, model: PreTrainedModel, shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig, narrow: Narrow
    ):
        self.model, self.plan, self.config, self.narrow = model, plan, config, narrow
        self.compensation = config.compensation
        self.reached = reached(shape, plan)

    def warn_of_few(self, tokens: Tensor, distinct: int | None) -> None:
        """Where there are fewer tokens than columns to solve for."""
        if not self.compensation.ridged:
            return
        layers, given, widest = decoder_layers(self.model), tokens.numel(), 0
        for index, blocks in self.reached.items():
            for block in blocks:
                module: Any = layers[index].get_submodule(block.reader.module)
                widest = max(widest, len(columns(block, self.plan, module.weight)))
        if given < widest:
            ridge, least = (self.compensation.damping or 0.0) * widest / given, math.ceil(widest / tokens.shape[1])
            text = "compensation: %d tokens for %d columns; λ is raised to %.3g. Give compensation_samples ≥ %d"
            logger.warning(text, given, widest, ridge, least)
        elif distinct is not None and distinct < widest:
            text = "compensation: the windows overlap: %d tokens, but %d distinct ones for %d columns; give longer text"
            logger.warning(text, given, distinct, widest)

    def run(self, tokens: Tensor, keep: Keep) -> Iterator[Adjusted]:
        if is_distributed() and len(tokens) < processes():
            raise DataError(f"{processes()} processes for fewer windows; raise compensation_samples")
        own = share(tokens)
        batches = list(own.split(self.config.batch_size or len(own)))
        layers = decoder_layers(self.model)
        dense, pruned = (LayerStream(self.model, batches, len(tokens), on_cpu=True) for _ in range(2))
        pairs = zip(self._not_narrow(dense), pruned, strict=True)
        for whole, cut in progress(pairs, f"{self.compensation.name}, layers", len(layers)):
            blocks = self.reached[whole.index]
            if not blocks:
                with self.narrow.off():
                    whole.pass_on()
                cut.skip() if whole.index in self.plan.removed_layers else cut.take(whole)
                continue
            keep(whole.index, [block.reader.module for block in blocks])
            yield from self._layer(whole, cut, blocks)

    def _not_narrow(self, stream: LayerStream) -> Iterator[StreamedLayer]:
        """The dense stream, which starts in all channels."""
        layers = iter(stream)
        while True:
            with self.narrow.off():
                layer = next(layers, None)
            if layer is None:
                return
            yield layer

    def _layer(self, dense: StreamedLayer, pruned: StreamedLayer, blocks: Sequence[Block]) -> Iterator[Adjusted]:
        whole: Dense = {}  # of what is adjusted already
        for block in blocks:
            name = block.reader.module
            module: Any = dense.layer.get_submodule(name)
            w = loaded(module, "weight")
            kept = stays(block, self.plan, w)
            where = f"layers.{dense.index}.{name}"
            pairs = self._pairs(dense.flows(name), pruned.flows(name), module, whole)
            dtype = torch.float64 if self.compensation.fits_biases else torch.float32
            moments = Moments.gather(pairs, columns(block, self.plan, w), rows(self.plan, w), where, dtype=dtype)
            before = w[kept].double()
            after, intercept = self.compensation.fit(before, moments)
            whole[module] = {one: loaded(module, one).clone() for one in parameter_names(module)}
            new = {"weight": only(w, kept, after)}
            if (bias := whole[module].get("bias")) is not None:
                entries = stays(block, self.plan, bias)
                new["bias"] = only(bias, entries, bias[entries] + (0 if intercept is None else intercept))
            if not all(torch.isfinite(value).all() for value in new.values()):
                raise NonFiniteError(f"{where}: the adjusted weights overflow {w.dtype}; give a larger ridge")
            for one, value in new.items():
                put(module, value, one)
            errors = moments.error(before), moments.error(new["weight"][kept], intercept)
            done = Adjusted(where, moments.tokens, *errors)
            del moments, before, after, new, value  # not beside the batches to come
            yield done
        with self._as_before(whole):
            dense.pass_on()
        pruned.pass_on()

    def _pairs(self, dense: _Flows, pruned: _Flows, module: Any, whole: Dense) -> _Flows:
        """X of the pruned stream and Y of the dense one, without the bias, batch by batch."""
        bias = None if module.bias is None else loaded(module, "bias")
        for x, _ in pruned:
            with self._as_before(whole):
                y = next(dense)[1]
            yield x, y if bias is None else y - bias
            del x, y  # not beside the next batch's

    @contextmanager
    def _as_before(self, whole: Dense) -> Iterator[None]:
        """The layer computes with its dense weights and all channels, for a while."""
        now = {module: {name: loaded(module, name).clone() for name in values} for module, values in whole.items()}
        _put_all(whole)
        try:
            with self.narrow.off():
                yield
        finally:
            _put_all(now)


def _put_all(parameters: Dense) -> None:
    for module, values in parameters.items():
        for name, value in values.items():
            put(module, value, name)
