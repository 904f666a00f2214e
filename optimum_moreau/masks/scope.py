"""Which matrices a mask is over, and how many zeros it will make, from shapes alone; weights may be on the meta device.

With n weights compared at a time and sparsity S, the number nearest to S·n goes, fewer on a tie: of every row, of the
whole matrix, of every 128 columns where SparseGPT chooses as it goes, or of all matrices at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import MoreauPrunerConfig
from ..config.quantities import nearest_fewer
from ..models.units import Block, ModelShape, decoder_layers
from .obs import BLOCK
from .patterns import Pattern


@dataclass(frozen=True)
class ZerosEstimate:
    """What a mask will be.

    Attributes:
        pattern: `unstructured`, or n:m.
        matrices: number of matrices in scope.
        weights: that they have together.
        zeros: that there will be; weights that are zero now and would stay, and those of inputs that never fire where
            others are adjusted, come on top.
        of_model: zeros as a share of all the model's parameters.
        by_scores: how the zeros are spread over layers follows the scores; with `owl`, their number within rounding.
    """

    pattern: str
    matrices: int
    weights: int
    zeros: int
    of_model: float
    by_scores: bool


def estimate_zeros(model: Any, shape: ModelShape, config: MoreauPrunerConfig) -> ZerosEstimate:
    """Counts as `sparsify` will, in the model or its skeleton; raises PlanError as `masked_blocks` does."""
    pattern = Pattern.parse(config.mask.pattern)
    sizes = [size for block in masked_blocks(model, shape, config) for size in _sizes(model, block).values()]
    weights = sum(rows * columns for rows, columns in sizes)
    zeros = sum(_zeros(rows, columns, pattern, config) for rows, columns in sizes)
    if config.budget.name == "global":
        zeros = nearest_fewer((config.mask.sparsity or 0.0) * weights)
    by_scores = config.budget.name != "uniform"
    return ZerosEstimate(config.mask.pattern, len(sizes), weights, zeros, zeros / shape.parameters, by_scores)


def masked_blocks(model: Any, shape: ModelShape, config: MoreauPrunerConfig) -> list[Block]:
    """The heads and channels whose matrices are in scope; raises PlanError, naming one that a pattern does not fit."""
    pattern, scope = Pattern.parse(config.mask.pattern), list(shape.in_scope(config, "attention", "mlp"))
    for block in scope:
        for module, (_, columns) in _sizes(model, block).items():
            pattern.check(columns, f"layers.{block.layer}.{module}")
    return scope


def modules_of(block: Block) -> list[str]:
    """The matrices of a block, each once."""
    return list(dict.fromkeys(cut.module for cut in block.cuts))


def _sizes(model: Any, block: Block) -> dict[str, tuple[int, int]]:
    layer: Any = decoder_layers(model)[block.layer or 0]
    return {module: tuple(layer.get_submodule(module).weight.shape) for module in modules_of(block)}


def _zeros(rows: int, columns: int, pattern: Pattern, config: MoreauPrunerConfig) -> int:
    """Of one matrix."""
    if pattern.structured:
        return rows * columns // pattern.of * (pattern.of - pattern.kept)
    sparsity = config.mask.sparsity or 0.0
    if config.criterion.name == "sparsegpt" and not config.mask.refine:
        blocks = [min(BLOCK, columns - start) for start in range(0, columns, BLOCK)]
        return sum(nearest_fewer(sparsity * rows * width) for width in blocks)
    if config.mask.group == "layer":
        return nearest_fewer(sparsity * rows * columns)
    return rows * nearest_fewer(sparsity * columns)
