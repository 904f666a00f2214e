"""What forward passes take that read the inputs of layers, one after the other: number, memory, operations.

    memory   hidden states between two layers, of all windows  +  the larger of
             one layer's activations of a batch, with its inputs' squares in float32
             Hessians  +  the new weights and masks of a layer, until all are chosen  +  a few matrices
             a search's logits of a batch  +  those of one window in float32, twice

The activations are counted as for gradients: a layer of each kind runs on the meta device.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from ..budgets.extent import solving
from ..config import MoreauPrunerConfig
from ..models.undisturbed import plain_outputs, undisturbed
from ..models.units import Block, ModelShape
from ..scoring.profiles import measures, measures_outliers

_LENGTH = 31  # tokens of the run on the meta device
_HESSIANS = 4  # of the widest inputs: Σ x xᵀ, H, its factor, its inverse
# Per weight of one matrix: w, its score, and what finds the k-th value (values, int64 places); the rest of a refinement
_CHOOSING, _REFINING = 24, 24
_WAITING = 5  # per weight of a layer: new in float32, and whether it stays
_RANKING = 21  # per weight in scope, of one ranking of all: scores twice, and what finds the k-th value


def forward_passes(shape: ModelShape, config: MoreauPrunerConfig) -> int:
    """Forward passes over the calibration text, the most through any layer; a search's as whole ones, no gradients'."""
    criterion = config.criterion
    reads = "activations" in criterion.needs
    if not config.masks:
        profile = _passes_of_budget(shape, config)
        profile += int(measures_outliers(config))
        return int(config.by_influence) + int(reads and bool(shape.scored(config))) + profile
    dense = int(config.budget.name == "owl") + int(reads and (config.budget.name == "global" or not criterion.by_layer))
    what = _read(config)
    if not what:
        return dense
    groups: dict[int | None, set[tuple[str, str]]] = {}  # what shares inputs in each layer: q, k, v; o; gate, up; down
    for block in shape.scored(config):
        groups.setdefault(block.layer, set()).update((block.kind, cut.side) for cut in block.cuts)
    times = max(map(len, groups.values())) if "products" in what else 1
    return dense + times + int(times > 1 or config.mask.feed_forward)


def search_extent(shape: ModelShape, config: MoreauPrunerConfig) -> tuple[int, int]:
    """Whole passes of a budget by loss, and the windows that each reads; zeros where there is none."""
    if not _by_loss(config):
        return 0, 0
    return config.budget.extent(shape, config).passes, min(config.calibration_samples, config.budget.windows)


def budget_operations(skeleton: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> float:
    """Floating-point operations of a budget by loss: its passes, to the end of the head, and what is solved for."""
    if not _by_loss(config):
        return 0.0
    extent = config.budget.extent(shape, config)
    everywhere = sum(rows * columns for layer in _matrices(skeleton, shape.blocks).values() for rows, columns in layer)
    readers = {b: tuple(skeleton.get_parameter(b.weight_names()[b.reader]).shape) for b in extent.solves}
    head: Any = skeleton.lm_head
    each = extent.passes * everywhere + extent.heads * head.weight.numel()
    windows = min(config.calibration_samples, config.budget.windows)
    found = 2.0 * windows * config.sequence_length * each
    if not _reads_products(config):
        return found
    tokens = config.calibration_samples * config.sequence_length
    found += 2.0 * tokens * (everywhere + sum(columns**2 for _, columns in readers.values()))
    return found + sum(times * solving(*reversed(readers[block])) for block, times in extent.solves.items())


def reads_gradients(config: MoreauPrunerConfig) -> bool:
    """Whether a budget goes back through the model."""
    return _by_loss(config) and config.budget.by == "gradients"


def _by_loss(config: MoreauPrunerConfig) -> bool:
    return bool(measures(config) and config.budget.by_loss)


def _reads_products(config: MoreauPrunerConfig) -> bool:
    """Whether a budget by loss adjusts what stays of a block, by one more pass over the text."""
    return _by_loss(config) and config.compensation.ridged


def _passes_of_budget(shape: ModelShape, config: MoreauPrunerConfig) -> int:
    if not _by_loss(config):
        return int(measures(config))
    return search_extent(shape, config)[0] + int(_reads_products(config))


def forward_operations(skeleton: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> float:
    """Floating-point operations of these passes, and of Hessians, their inverses and the update; not of the choice.

    Those of a budget by loss are apart (`budget_operations`).
    """
    tokens = config.calibration_samples * config.sequence_length
    everywhere = sum(rows * columns for layer in _matrices(skeleton, shape.blocks).values() for rows, columns in layer)
    apart = _passes_of_budget(shape, config) if _by_loss(config) else 0
    found = 2.0 * (forward_passes(shape, config) - apart) * tokens * everywhere
    if "products" in _read(config):
        for layer in _matrices(skeleton, shape.scored(config)).values():
            widths = {columns: sum(r for r, c in layer if c == columns) for _, columns in layer}
            # Σ x xᵀ once for those that share inputs; two Cholesky factors and an inverse; a column for each behind it
            found += sum((2 * tokens + 4 / 3 * width + rows) * width**2 for width, rows in widths.items())
    return found


def forward_bytes(skeleton: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> tuple[int, int]:
    """Bytes held through the whole run, and at the peak of one layer."""
    blocks, what = shape.scored(config), _read(config)
    layers = _matrices(skeleton, blocks)
    sizes = [rows * columns for layer in layers.values() for rows, columns in layer]
    held = within = 0
    if forward_passes(shape, config):
        tokens = config.calibration_samples * config.sequence_length
        held = tokens * skeleton.config.hidden_size * skeleton.dtype.itemsize
        modules = {cut.module for block in blocks for cut in block.cuts} if what else set()
        windows = min(config.batch_size or config.calibration_samples, config.calibration_samples)
        within = bytes_per_batch(skeleton, modules, windows, config.sequence_length)
        if search_extent(shape, config)[0]:
            # the logits of all windows of a batch, and those of one, their log-softmax beside them, in float32
            logits = skeleton.config.vocab_size * (windows * skeleton.dtype.itemsize + 2 * 4)
            within = max(within, logits * config.sequence_length)
    choosing = 0
    if "products" in what:
        widest = max((columns for layer in layers.values() for _, columns in layer), default=0)
        all_of_layer = (sum(columns**2 for _, columns in layer) for layer in layers.values())
        together = 0 if config.masks else max(all_of_layer, default=0)
        choosing = 4 * (_HESSIANS * widest**2 + together)
    if config.masks:
        choosing += _WAITING * max(sum(rows * columns for rows, columns in layer) for layer in layers.values())
        choosing += (_CHOOSING + (_REFINING if config.mask.refine else 0)) * max(sizes)
    return held, max(within, choosing)


def score_bytes(config: MoreauPrunerConfig, weights: int) -> int:
    """Bytes of the scores of all weights in scope, in main memory, where a mask needs them before it begins."""
    if not config.masks:
        return 0
    if config.budget.name == "global":
        return _RANKING * weights
    return 4 * weights * (int(config.budget.name == "owl") + int(not config.criterion.by_layer))


def bytes_per_batch(skeleton: Any, modules: set[str], windows: int, length: int) -> int:
    """Most bytes alive at once while a batch passes through one layer, weights left out.

    Args:
        skeleton: the model on the meta device.
        modules: whose inputs are squared, in float32.
        windows: of the batch.
        length: tokens per window.
    """
    kinds = {tuple(p.shape for p in layer.parameters()): layer for layer in skeleton.model.layers}
    whole, skeleton.model.layers = skeleton.model.layers, nn.ModuleList(kinds.values())
    ids = torch.zeros(windows, _LENGTH, dtype=torch.int64, device="meta")
    mask = torch.zeros(1, 1, _LENGTH, _LENGTH, dtype=skeleton.dtype, device="meta")

    def square(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        args[0].float().square()

    inner = [layer.get_submodule(name) for layer in kinds.values() for name in modules]
    handles = [module.register_forward_hook(square) for module in inner]
    try:
        with undisturbed(), plain_outputs(skeleton), torch.no_grad(), Alive() as alive:
            skeleton.model(input_ids=ids, position_ids=ids[:1], attention_mask=mask, use_cache=False)
    finally:
        skeleton.model.layers = whole
        for handle in handles:
            handle.remove()
    return math.ceil(alive.most * length / _LENGTH)


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors made within it that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in given and key not in self._known:
                    self._known[key] = weakref.finalize(storage, self._gone, key, size)
                    self.now += size
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        del self._known[key]


def _read(config: MoreauPrunerConfig) -> set[str]:
    """What is read off the inputs of layers, one layer after the other."""
    criterion = config.criterion
    found = set(criterion.statistics)
    if config.masks:
        found |= {"squares", "sums"} if config.mask.refine else set()
        found |= {"products"} if config.mask.update or criterion.name == "sparsegpt" else set()
    elif "activations" in criterion.needs:
        found = found or {"squares"}
    return found


def _matrices(skeleton: PreTrainedModel, blocks: tuple[Block, ...]) -> dict[int | None, list[tuple[int, int]]]:
    """Shapes `(out, in)` of the matrices of some blocks, by layer, each once."""
    names: dict[str, int | None] = {name: block.layer for block in blocks for name in block.weight_names().values()}
    found: dict[int | None, list[tuple[int, int]]] = {}
    for name, layer in names.items():
        rows, columns = skeleton.get_parameter(name).shape
        found.setdefault(layer, []).append((rows, columns))
    return found
