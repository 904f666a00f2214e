"""Masks a model in place: score, permute, choose, refine, update; one decoder layer after the other.

A criterion of weights or of what flows into a layer decides layer by layer, and what is pruned reaches the layers
behind (`feed_forward`). One of gradients scores the dense model first, all of it, which takes one float32 number for
every weight in scope.

Weights that are zero before stay zero. They go first, whatever their scores; in excess of the pattern they are zeros
besides. No refinement brings one back, and an update holds them at zero as it does what is pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..criteria import Criterion
from ..criteria.scoring_run import Scoring
from ..criteria.sparsegpt import inverse_factor
from ..criteria.wanda import Wanda
from ..distributed import is_distributed
from ..envelope import scoring_mode
from ..errors import ConfigError, DataError, NonFiniteError, PlanError
from ..models.placement import Keep, loaded, parameter_names, parameter_values, put, restored
from ..models.progress import progress
from ..models.stream import Inputs, LayerStream, StreamedLayer
from ..models.units import LAYERS, Block, ModelShape, decoder_layers
from ..scoring.scores import check_gradients
from .obs import surgeon
from .patterns import Pattern, global_masks, keep_mask, zeros_first
from .permute import Order, order_channels
from .refine import STATISTICS, Refined, refine
from .refinements import REFINEMENTS
from .scope import masked_blocks, modules_of
from .summary import MatrixSparsity, SparsitySummary

_EMPTY = Inputs(0, 0)


@dataclass(frozen=True)
class _Cut:
    """A matrix after its mask: its new weights, which stay, what the refinement did, and the order of its inputs."""

    block: Block
    name: str
    weight: Tensor
    mask: Tensor
    refined: Refined | None = None
    order: Order | None = None


def sparsify(
    model: PreTrainedModel,
    shape: ModelShape,
    tokens: Tensor | None,
    config: MoreauPrunerConfig,
    elements: Mapping[str, Tensor] | None = None,
) -> SparsitySummary:
    """In place: sets the least important weights of the matrices in scope to zero; on an error it is as it was.

    Args:
        model: a causal language model.
        shape: its shape.
        tokens: calibration windows `(samples, length)`; may be `None` where nothing reads them.
        config: resolved, with a `pattern` of masks.
        elements: what `element_scores` gave for the same model, text and criterion; default: scored now.

    Raises:
        ConfigError: in several processes.
        UnsupportedModelError: the criterion needs gradients, which this model cannot have.
        PlanError: the pattern does not fit a matrix, or there are no scores of it; named, before anything is done.
        DataError: tokens are missing.
        NonFiniteError: an input, a gradient or a score is not finite, or a Hessian not positive definite.
    """
    if is_distributed():
        raise ConfigError("masks are made in one process; run without torchrun or accelerate launch")
    masker = _Masker(model, shape, tokens, config)
    with torch.inference_mode(False), scoring_mode(model), torch.no_grad(), restored(masker.layers) as keep:
        found = [matrix for layer in masker.run(keep, elements) for matrix in layer]
    asked = masker.pattern.sparsity if masker.pattern.structured else config.mask.sparsity or 0.0
    return SparsitySummary(config.mask.pattern, asked, tuple(found), shape.parameters)


def element_scores(
    model: PreTrainedModel, shape: ModelShape, tokens: Tensor | None, config: MoreauPrunerConfig
) -> dict[str, Tensor]:
    """Scores every weight in scope of the dense model, which is left as it was; arguments and errors as for `sparsify`.

    Returns:
        `model.layers.3.mlp.up_proj.weight` → float32 tensor `(out, in)` on the CPU; empty where the criterion scores
        each layer as the masked ones before it leave it.
    """
    masker = _Masker(model, shape, tokens, config)
    with torch.inference_mode(False), scoring_mode(model), torch.no_grad():
        return masker.scores()


class _Masker:
    def __init__(
        self, model: PreTrainedModel, shape: ModelShape, tokens: Tensor | None, config: MoreauPrunerConfig
    ) -> None:
        check_gradients(model, config)
        self.scope = masked_blocks(model, shape, config)
        self.owners: dict[int, dict[str, Block]] = {}  # layer → its matrices, and the block of each
        for block in self.scope:
            assert block.layer is not None  # heads and channels lie in a layer
            self.owners.setdefault(block.layer, {}).update(dict.fromkeys(modules_of(block), block))
        self.model, self.layers, self.config = model, decoder_layers(model), config
        self.pattern = Pattern.parse(config.mask.pattern)
        self.mask, self.criterion = config.mask, (criterion := config.criterion)
        self.updates = self.mask.update or criterion.name == "sparsegpt"
        self.needs_text = bool(criterion.needs) or config.budget.measured
        refining, updating = STATISTICS if self.mask.refine else (), ["products"] if self.updates else []
        self.what = tuple(sorted({*criterion.statistics, *refining, *updating}))
        if tokens is None and (self.what or self.needs_text):
            raise DataError(f"{criterion.name}: reads calibration text; give some")
        self.batches = [] if tokens is None else list(tokens.clone().split(config.batch_size or len(tokens)))
        self.windows = 0 if tokens is None else len(tokens)

    def run(self, keep: Keep, elements: Mapping[str, Tensor] | None) -> Iterator[list[MatrixSparsity]]:
        """Masks every layer in scope; yields what was done to each."""
        scores = self.scores() if elements is None else dict(elements)
        for name in (name for block in self.scope for name in block.weight_names().values()):
            if elements is not None and name not in scores:
                raise PlanError(f"{name}: no scores; score this model with this scope first")
        self._spread(scores)
        if not self.what:
            for index, modules in self.owners.items():
                keep(index, list(modules))
                yield self._write(index, [self._cut(index, module, _EMPTY, scores) for module in modules])
            return
        stream = LayerStream(self.model, self.batches, self.windows)
        for streamed in progress(stream, "masking, layers", len(self.layers)):
            if streamed.index in self.owners:
                keep(streamed.index, list(self.owners[streamed.index]))
                yield self._layer(streamed, scores)
            if streamed.index == max(self.owners):  # nothing reads what comes out of it
                break

    def _layer(self, streamed: StreamedLayer, scores: dict[str, Tensor]) -> list[MatrixSparsity]:
        """One pass gathers all; but Hessians are held one at a time, matrices with the same inputs sharing one."""
        owner = self.owners[streamed.index]
        groups = [list(owner)]
        if "products" in self.what:
            groups = [modules for block in dict.fromkeys(owner.values()) for modules in _sharing(block)]
        found: list[MatrixSparsity] = []
        waiting: list[_Cut] = []
        for group in groups:
            once = len(groups) == 1 and not self.mask.feed_forward
            inputs = streamed.gather(group, self.what, pass_on=once, alike="products" in self.what)
            cuts = [self._cut(streamed.index, module, inputs[module], scores) for module in group]
            if self.mask.feed_forward:
                found += self._write(streamed.index, cuts)
            else:
                waiting += cuts
        if waiting:
            streamed.pass_on()  # with the dense weights
            found += self._write(streamed.index, waiting)
        return found

    def _cut(self, index: int, module: str, inputs: Inputs, scores: dict[str, Tensor]) -> _Cut:
        """Scores a matrix, permutes its inputs, chooses, refines, updates; changes nothing in the model."""
        block, where, name = self.owners[index][module], f"layers.{index}.{module}", f"{LAYERS}{index}.{module}.weight"
        w = parameter_values(self.model, name).float()
        sparsity = self.shares.get(index, self.mask.sparsity or 0.0)
        score = order = mask = refined = None
        if inputs.products is not None:
            w = torch.where(inputs.products.diagonal() == 0, 0, w)  # an input that never fires
        on_the_way = self.criterion.name == "sparsegpt" and not self.mask.refine
        permuted = self.mask.permute and module == block.reader.module
        if name in self.masks:
            mask = self.masks.pop(name).to(w.device)
        elif permuted or not on_the_way:
            if self.criterion.by_layer:
                score = self.criterion.elements(name, w, inputs, self.config.seed)
            else:
                score = scores.pop(name).to(w.device)
            self._check(score, where)
            score = score.masked_fill(w == 0, 0)
        if permuted and score is not None:  # n:m has no global budget, so a score
            heads, readers = (block.total, block.n_rep) if block.kind == "attention" else (1, 1)
            order = order_channels(score, self.pattern, heads, readers)
            w, score, inputs = w[:, order.columns], score[:, order.columns], inputs.reordered(order.columns)
        if score is not None and not on_the_way:
            mask = keep_mask(zeros_first(score, w), self.pattern, sparsity, self.mask.group or "row")
        if mask is not None and self.mask.refine:
            refined = refine(w, mask, inputs, self.pattern, REFINEMENTS[self.mask.refine])
            mask = refined.mask
        if self.updates:
            upper, _ = inverse_factor(inputs, getattr(self.criterion, "damping", self.mask.damping), where)
            return _Cut(block, module, *surgeon(w, upper, self.pattern, sparsity, mask), refined, order)
        assert mask is not None  # only sparsegpt, which updates, chooses on the way
        return _Cut(block, module, torch.where(mask, w, 0), mask, refined, order)

    def _write(self, index: int, cuts: Sequence[_Cut]) -> list[MatrixSparsity]:
        found: list[MatrixSparsity] = []
        layer: Any = self.layers[index]
        for cut in cuts:
            module, where = layer.get_submodule(cut.name), f"layers.{index}.{cut.name}"
            weight = cut.weight.to(module.weight.dtype)
            if not torch.isfinite(weight).all():
                raise NonFiniteError(f"{where}: the adjusted weights overflow {weight.dtype}")
            put(module, weight)
            if cut.order:
                _reorder_writers(layer, cut.block, cut.order.rows)
            zeros = int((cut.weight == 0).sum())
            errors = (cut.refined.before, cut.refined.after, cut.refined.swaps) if cut.refined else (None, None, 0)
            shares = (cut.order.before, cut.order.after) if cut.order else (None, None)
            holds = self.pattern.holds(cut.mask)
            found.append(MatrixSparsity(where, zeros, cut.mask.numel(), holds, *errors, *shares))
        return found

    def _check(self, score: Tensor, where: str) -> None:
        if not torch.isfinite(score).all():
            raise NonFiniteError(f"{where}: the scores of {self.criterion.name} are not finite; check its weights")

    def _spread(self, scores: dict[str, Tensor]) -> None:
        """Decides each layer's share of zeros, or all masks, from scores of the dense model, where the budget says."""
        self.shares: dict[int, float] = {}
        self.masks: dict[str, Tensor] = {}
        sparsity = self.mask.sparsity or 0.0
        if self.config.budget.name == "owl":
            by_layer: dict[int, list[Tensor]] = {}
            for name, score in self._dense(Wanda()):
                by_layer.setdefault(int(name.split(".")[2]), []).append(score)
            self.shares = self.config.budget.sparsity(by_layer, sparsity)
        elif self.config.budget.name == "global":
            found = dict(self._dense(self.criterion)) if self.criterion.by_layer else dict(scores)
            for name, score in found.items():
                self._check(score, name.removeprefix("model.").removesuffix(".weight"))
                found[name] = zeros_first(score, parameter_values(self.model, name).to(score.device))
            self.masks = global_masks(found, sparsity)

    def _dense(self, criterion: Criterion) -> Iterator[tuple[str, Tensor]]:
        """Scores every matrix of the dense model; on the CPU, in float32."""

        def scored(index: int, inputs: Mapping[str, Inputs]) -> Iterator[tuple[str, Tensor]]:
            for module in self.owners[index]:
                name = f"{LAYERS}{index}.{module}.weight"
                w = parameter_values(self.model, name).float()
                yield name, criterion.elements(name, w, inputs.get(module, _EMPTY), self.config.seed).cpu()

        if not criterion.statistics:
            for index in self.owners:
                yield from scored(index, {})
            return
        for streamed in LayerStream(self.model, self.batches, self.windows):
            if streamed.index in self.owners:
                inputs = streamed.gather(list(self.owners[streamed.index]), criterion.statistics)
                yield from scored(streamed.index, inputs)

    def scores(self) -> dict[str, Tensor]:
        """Element scores of the dense model, kept on the CPU; none where they are made layer by layer."""
        if self.criterion.by_layer:
            return {}
        found: dict[str, Tensor] = {}
        absolute_each = self.criterion.absolute_each()

        def add(name: str, elements: Tensor) -> None:
            part = elements.abs().float().cpu() if absolute_each else elements.float().cpu()
            found[name] = found[name].add_(part) if name in found else part.clone()

        self.criterion.score(Scoring(self.model, tuple(self.scope), self.batches, self.windows, self.config, add))
        return {name: scores.abs_() for name, scores in found.items()}  # those with signs


def _sharing(block: Block) -> list[list[str]]:
    """The matrices of a block, those that read the same inputs together: q, k, v; o; gate, up; down."""
    sides = {cut.module: cut.side for cut in block.cuts}
    return [[module for module, own in sides.items() if own == side] for side in ("out", "in")]


def _reorder_writers(layer: Any, block: Block, order: Tensor) -> None:
    """In place: the rows, and biases, that write a block's channels follow the matrix that reads them."""
    for cut in block.writers:
        module = layer.get_submodule(cut.module)
        for name in parameter_names(module):
            old = loaded(module, name)
            rows = block.lines(cut, len(old), old.device).flatten()
            put(module, old.index_copy(0, rows, old[rows[order.to(rows.device)]]), name)
