"""The model with any number of units of any block gone, each block's rest adjusted by itself.

Of o_proj or down_proj, W `(out, in)`, the n lowest-scored units go; X is what flows into it in the dense model, S the
columns that stay:

    V_S = argmin ‖X_S·Vᵀ − X·Wᵀ‖² + λ‖V − W_S‖²        from XᵀX alone, since TᵀX_S = W·(XᵀX)_{:S}

XᵀX of every block lies in a folder on disk, and so do the matrices that were made of it: both are mapped into memory,
so that what a search composes of them takes none (Týr-the-Pruner, https://arxiv.org/abs/2503.09657). Without XᵀX, and
for a compensation that solves for no columns, V_S = W_S.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import read_tensors, write_tensors
from ..files.temporary import remove
from ..least_squares.moments import Moments
from ..least_squares.ridge import ridge_fit
from ..models.hooks import standing_in
from ..models.placement import loaded
from ..models.units import Block, decoder_layers
from .extent import solving

Counts = Mapping[Block, int]


class Supernet:
    """Makes matrices with units gone, and lets a model compute with them; its own weights stay as they are.

    Args:
        model: a causal language model in `scoring_mode`.
        scores: of the units; the lowest go first.
        ridge: λ, as a share of the mean of diag XᵀX; `None`: nothing is adjusted.
        folder: where XᵀX and matrices lie.
    """

    def __init__(self, model: Any, scores: Mapping[str, Tensor], ridge: float | None, folder: Path):
        self._layers, self._scores = decoder_layers(model), scores
        self.ridge, self._folder = ridge, folder
        self._products: dict[Block, Tensor] = {}
        self._kept: dict[tuple[Block, int], Tensor] = {}

    def reader(self, block: Block) -> Any:
        """o_proj or down_proj."""
        return self._layers[block.layer].get_submodule(block.reader.module)  # type: ignore[index]

    def solving(self, times: Mapping[Block, int]) -> float:
        """Floating-point operations of so many matrices of each block; none where nothing is adjusted."""
        if self.ridge is None:
            return 0.0
        shapes = ((n, *self.reader(block).weight.shape) for block, n in times.items())
        return sum(n * solving(columns, rows) for n, rows, columns in shapes)

    def learn(self, block: Block, products: Tensor, *, keep: bool) -> None:
        """Takes XᵀX `(in, in)` of a block, on disk where it is to be kept for later."""
        self._products[block] = self._on_disk(f"{block.where}.products", products.cpu()) if keep else products

    def forget(self, block: Block) -> None:
        """Drops XᵀX of a block."""
        self._products.pop(block, None)

    def matrix(self, block: Block, count: int, *, keep: bool = False) -> Tensor:
        """V, `(out, in)`, with zeros in the columns of the units that go; in the weight's dtype.

        Args:
            block: of heads or channels.
            count: of units that go.
            keep: on disk, until `keep_only` drops it.

        Raises:
            NonFiniteError: λ is too small for a Cholesky factor.
        """
        if (block, count) in self._kept:
            return self._kept[block, count]
        w = loaded(self.reader(block), "weight")
        found = self._made(block, count, w) if count else w
        if keep and count:
            found = self._kept[block, count] = self._on_disk(f"{block.where}.{count}", found.cpu())
        return found

    def _made(self, block: Block, count: int, w: Tensor) -> Tensor:
        order = torch.argsort(self._scores[block.where], stable=True).to(w.device)
        columns = block.lines(block.reader, w.shape[1], w.device)
        stays, goes = columns[order[count:]].flatten().sort().values, columns[order[:count]].flatten()
        if self.ridge is None or block not in self._products:
            return w.index_fill(1, goes, 0)
        xx, whole = self._products[block].to(w.device).double(), w.double()
        tx, nothing = whole @ xx[:, stays], xx.new_zeros(0)
        moments = Moments(block.where, 0, 1.0, xx[stays][:, stays], tx, nothing, nothing, nothing)
        fitted = ridge_fit(whole[:, stays], moments, self.ridge)
        return torch.zeros_like(w).index_copy_(1, stays, fitted.to(w.dtype))

    @contextmanager
    def composed(self, counts: Counts, *, keep: bool = False) -> Iterator[None]:
        """Within the block the model computes with so many units of each block gone."""
        weights: Sequence[tuple[nn.Module, Tensor]] = [
            (self.reader(block), self.matrix(block, count, keep=keep)) for block, count in counts.items() if count
        ]
        with standing_in(weights):
            yield

    @contextmanager
    def instead(self, block: Block, count: int) -> Iterator[None]:
        """Within the block one block has another number of units gone, none for 0, whatever stands in for it now."""
        with standing_in([(self.reader(block), self.matrix(block, count))]):
            yield

    def keep_only(self, counts: Counts) -> None:
        """Drops the matrices on disk that are not of these counts."""
        for block, count in [key for key in self._kept if counts.get(key[0]) != key[1]]:
            del self._kept[block, count]
            remove(self._folder / f"{block.where}.{count}")

    def _on_disk(self, name: str, value: Tensor) -> Tensor:
        """The same numbers, mapped into memory from a file."""
        write_tensors(self._folder / name, {"values": value.contiguous()})
        return read_tensors(self._folder / name, "a layer of a search")[0]["values"]
