"""Fits what stays, layer by layer, in the model that is whole as yet.

Two streams of hidden states go through the layers, that of the dense model and that of the pruned one. The dense one
passes a layer first, and what should come out of o_proj and down_proj is kept (aims.py). Then o_proj is adjusted, and
then down_proj, whose inputs it changes, and the pruned stream passes on; so errors of earlier layers are in X, and made
up for as far as they can be. A unit that goes speaks through its columns of o_proj or down_proj alone: with these at
zero the layer computes what it will when it is cut. So there is never a second model. Where hidden channels go, the
pruned stream is zero in them: its start and its norms by hooks (narrow.py), o_proj and down_proj by rows of zeros, and
the other rows are fitted.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..data.parts import Parts
from ..distributed import generator, is_distributed, processes, share
from ..errors import DataError, NonFiniteError
from ..least_squares.moments import Flow, Moments
from ..models.families import Kind
from ..models.placement import Keep, device_of, loaded, parameter_names, put
from ..models.progress import progress
from ..models.stream import LayerStream, StreamedLayer
from ..models.units import Block, ModelShape, decoder_layers
from ..planning import PruningPlan
from .aims import Aims
from .blocks import WATCHED, BlockTrainer, Lesson, giving_zeros
from .chosen import choose
from .done import Adjusted, Done, Trained
from .kept import KeptLayers
from .narrow import Narrow
from .silence import columns, only, reached, rows, stays
from .step import FEW
from .train import Train

logger = logging.getLogger(__name__)


class Fitter:
    """Adjusts o_proj and down_proj of a model in `scoring_mode`, in place.

    Args:
        model: the base model.
        shape: its shape.
        plan: what stays.
        config: resolved.
        narrow: the hooks that make the model compute with the hidden channels that stay.
        kept: layers that a run which was killed adjusted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shape: ModelShape,
        plan: PruningPlan,
        config: MoreauPrunerConfig,
        narrow: Narrow,
        kept: KeptLayers,
    ):
        self.model, self.plan, self.config, self.narrow, self.kept = model, plan, config, narrow, kept
        self.compensation = config.compensation
        self.reached = reached(shape, plan)
        self.readers = {(block.layer, block.kind): block.reader.module for block in shape.blocks}
        adds = shape.family.adds
        times = float(getattr(model.config, "residual_multiplier", 1.0))
        self.trains = self.compensation if isinstance(self.compensation, Train) else None
        self.parallel, self.blocks = shape.family.parallel, shape.blocks
        self.aims = Aims(adds, adds and self.compensation.target == "stream", times)

    def warn_of_few(self, tokens: int, distinct: int | None) -> None:
        """Where there are few tokens for the columns that are solved for."""
        if not self.compensation.ridged:
            return
        layers, widest = decoder_layers(self.model), 0
        for index, blocks in self.reached.items():
            for block in blocks:
                module: Any = layers[index].get_submodule(block.reader.module)
                widest = max(widest, len(columns(block, self.plan, module.weight)))
        known = tokens if distinct is None else min(tokens, distinct)
        if known < FEW * widest:
            text = "compensation: %s tokens of text%s for %s columns; %s would be better: give longer text%s"
            again = f" ({tokens:,} in windows that overlap)" if known < tokens else ""
            more = "" if known < tokens else ", or more windows (--compensation-args windows=N)"
            logger.warning(text, f"{known:,}", again, f"{widest:,}", f"{FEW * widest:,}", more)

    def run(self, parts: Parts, keep: Keep) -> Iterator[Done]:
        """Yields what was done, layer by layer, as it is; `keep` is told before a layer changes."""
        if is_distributed() and min(map(len, parts.folds)) < processes():
            raise DataError(f"{processes()} processes for fewer windows in a fold; give the compensation more windows")
        batches, folds = [], []
        for fold, tokens in enumerate(parts.folds):
            own = list(share(tokens.clone()).split(self.config.batch_size or len(tokens)))
            batches += own
            folds += [fold] * len(own)
        layers = decoder_layers(self.model)
        self.kept.say(len(layers))
        dense, pruned = (LayerStream(self.model, batches, parts.fitted, on_cpu=True) for _ in range(2))
        pairs = zip(self._not_narrow(dense), pruned, strict=True)
        for whole, cut in progress(pairs, f"{self.compensation.name}, layers", len(layers)):
            blocks = self.reached[whole.index]
            if not blocks:
                with self.narrow.off():
                    whole.pass_on()
                cut.skip() if whole.index in self.plan.removed_layers else cut.take(whole)
                continue
            changed = self._changed(whole, blocks)
            keep(whole.index, changed)
            yield self._again(whole, cut, changed) or self._adjusted(whole, cut, blocks, folds, parts, changed)

    def _not_narrow(self, stream: LayerStream) -> Iterator[StreamedLayer]:
        """The dense stream, which starts in all channels."""
        layers = iter(stream)
        while True:
            with self.narrow.off():
                layer = next(layers, None)
            if layer is None:
                return
            yield layer

    def _again(self, dense: StreamedLayer, pruned: StreamedLayer, changed: Collection[str]) -> Done | None:
        """What was done to a layer by a run that was killed, done again without fitting anything."""
        if not self.kept.has(dense.index):
            return None
        with self.narrow.off():
            dense.pass_on()
        done = self.kept.again(dense.index, dense.layer, changed)
        pruned.pass_on()
        return done

    def _adjusted(
        self,
        dense: StreamedLayer,
        pruned: StreamedLayer,
        blocks: Sequence[Block],
        folds: Sequence[int],
        parts: Parts,
        changed: Collection[str],
    ) -> Done:
        matrices: list[Adjusted] = []
        trained: list[Trained] = []
        behind = self._behind_attention(dense, blocks)
        wanted = self._wanted(dense, blocks)
        before: list[tuple[Tensor, Tensor]] = []  # the pruned stream before down_proj is added; what flows into that
        for block in blocks:
            module: Any = dense.layer.get_submodule(block.reader.module)
            flows = self._flows(
                pruned, block, wanted.pop(block), folds, before if block is blocks[-1] and not self.trains else None
            )
            matrices.append(self._fit(block, module, flows, f"layers.{dense.index}.{block.reader.module}"))
            if self.trains and (block is blocks[-1] or not self.parallel):
                aims = dense.windows if block is blocks[-1] else _windows(behind)
                trained.append(self._train(pruned, block, aims, parts))
        if self.trains or not self.aims.adds:
            pruned.pass_on()
        else:
            device = device_of(module)
            pruned.hand_on(self.aims.behind(h.to(device), module(x.to(device))) for h, x in before)
        done = Done(tuple(matrices), tuple(trained))
        self.kept.keep(dense.index, dense.layer, changed, done)
        return done

    def _changed(self, layer: StreamedLayer, blocks: Sequence[Block]) -> list[str]:
        """The modules of a layer that may change."""
        if not self.trains:
            return [block.reader.module for block in blocks]
        return [name for name, module in layer.layer.named_modules() if parameter_names(module)]

    def _behind_attention(self, dense: StreamedLayer, blocks: Sequence[Block]) -> list[Tensor]:
        """The dense stream between attention and MLP, where something is trained to give it."""
        if not self.trains or self.parallel or blocks[0].kind != "attention":
            return []
        with self.narrow.off(), giving_zeros(dense.layer, self._module(dense.index, "mlp")):
            return dense.computed()

    def _module(self, index: int, kind: Kind) -> str:
        """The name of a layer's attention or MLP."""
        return self.readers[index, kind].rpartition(".")[0]

    def _train(self, pruned: StreamedLayer, block: Block, aims: list[Tensor], parts: Parts) -> Trained:
        """Trains a block, or with parallel ones the layer."""
        assert self.trains is not None
        where, layer = f"layers.{pruned.index}", pruned.layer
        together = [one for one in self.blocks if one.layer == pruned.index]
        silent, inputs = None, pruned.windows
        if not self.parallel:
            where, silent = block.where, self._module(pruned.index, "mlp" if block.kind == "attention" else "attention")
            if block.kind == "mlp":
                with giving_zeros(layer, self._module(pruned.index, "mlp")):
                    inputs = _windows(pruned.computed())
        masks = {}
        for one in together if self.parallel else [block]:
            module: Any = layer.get_submodule(one.reader.module)
            for name in parameter_names(module):
                ones = torch.ones_like(loaded(module, name))
                kept = stays(one, self.plan, ones)
                masks[f"{one.reader.module}.{name}"] = only(ones, kept, ones[kept])
        lesson = Lesson(inputs, aims, *parts.watched(WATCHED), pruned.arguments)
        draw = generator(self.config.seed, f"train {where}")
        return BlockTrainer(layer, silent, masks).train(where, lesson, self.trains, draw)

    def _wanted(self, dense: StreamedLayer, blocks: Sequence[Block]) -> dict[Block, list[Tensor]]:
        """Passes the dense layer; returns what should be behind each of its matrices, or come out, batch by batch."""
        readers = [self.readers[dense.index, kind] for kind in ("attention", "mlp")]
        with self.narrow.off():
            streams = list(dense.hidden) if self.aims.to_stream else []
            outputs = dense.outputs(readers if self.aims.to_stream else [block.reader.module for block in blocks])
        if not self.aims.to_stream:
            return {block: outputs[block.reader.module] for block in blocks}
        found: dict[Block, list[Tensor]] = {}
        after = streams
        for kind, name in zip(("attention", "mlp"), readers, strict=True):
            given = outputs.pop(name)
            after = [self.aims.behind(h.to(y.device), y) for h, y in zip(after, given, strict=True)]
            found |= {block: after for block in blocks if block.kind == kind}
        return found

    def _flows(
        self,
        pruned: StreamedLayer,
        block: Block,
        wanted: list[Tensor],
        folds: Sequence[int],
        before: list[tuple[Tensor, Tensor]] | None,
    ) -> Iterator[Flow]:
        """X of the pruned stream and T, batch by batch; `before` grows by what the layer's output is made of."""
        module: Any = pruned.layer.get_submodule(block.reader.module)
        bias = None if module.bias is None else loaded(module, "bias")
        beside = self.readers[pruned.index, "attention"] if block.kind == "mlp" else None
        wanted.reverse()
        for fold, (stream, x, given) in zip(folds, pruned.flows(block.reader.module, beside), strict=True):
            if given is not None:
                stream = self.aims.behind(stream, given)
            if before is not None and self.aims.adds:
                before.append((stream.cpu(), x.cpu()))
            aim = wanted.pop().to(x.device)
            yield fold, x, self.aims.should_give(aim, stream, bias), self.aims.weight(aim)
            del stream, x, given, aim  # not beside the next batch's

    def _fit(self, block: Block, module: Any, flows: Iterator[Flow], where: str) -> Adjusted:
        """Adjusts one matrix."""
        w = loaded(module, "weight")
        kept = stays(block, self.plan, w)
        dtype = torch.float64 if self.compensation.fits_biases else torch.float32
        columns_, rows_ = columns(block, self.plan, w), rows(self.plan, w)
        a, b = Moments.gather(flows, columns_, rows_, where, folds=2, dtype=dtype)
        tokens = a.tokens + b.tokens
        found = choose(self.compensation, w[kept].double(), (a, b))
        new = {"weight": only(w, kept, found.w)}
        if module.bias is not None:
            bias = loaded(module, "bias")
            entries = stays(block, self.plan, bias)
            new["bias"] = only(bias, entries, bias[entries] + (0 if found.b is None else found.b))
        if not all(torch.isfinite(value).all() for value in new.values()):
            raise NonFiniteError(f"{where}: the adjusted weights overflow {w.dtype}; give a larger ridge")
        for one, value in new.items():
            put(module, value, one)
        return Adjusted(where, tokens, found.before, found.after, found.ridge)


def _windows(batches: list[Tensor]) -> list[Tensor]:
    return [window for states in batches for window in states]
