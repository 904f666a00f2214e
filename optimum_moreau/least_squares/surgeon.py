"""Structured optimal brain surgeon: which columns of a matrix can go, when what stays makes up for them.

With H = XᵀX + λI, the least of  tr((V − W)·H·(V − W)ᵀ)  with the columns S of one unit at zero is

    E_S = tr(W_:S ([H⁻¹]_SS)⁻¹ W_:Sᵀ)          of a single column ‖W_:j‖²/[H⁻¹]_jj

    W   ← W − W_:S ([H⁻¹]_SS)⁻¹ [H⁻¹]_S:        H⁻¹ ← H⁻¹ − [H⁻¹]_:S ([H⁻¹]_SS)⁻¹ [H⁻¹]_S:

The cheapest units go first, and costs are renewed after each group (ZipLM, https://arxiv.org/abs/2302.04089; OSSCAR,
https://arxiv.org/abs/2403.12983; SlimGPT, https://arxiv.org/abs/2412.18110).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NonFiniteError

_SHRINK = 0.75  # of the columns are left: what has gone is dropped from H⁻¹


def removal_costs(products: Tensor, w: Tensor, units: Tensor, *, damping: float, group: int, where: str) -> Tensor:
    """What each unit costs when it goes, one group after the other until one unit is left.

    Args:
        products: XᵀX, `(in, in)`.
        w: W, `(out, in)`.
        units: the columns of each unit, int64 `(units, width)`.
        damping: λ, as a share of the mean of diag XᵀX.
        group: columns that go before costs are renewed; at least one unit's.
        where: name of the matrix, for messages.

    Returns:
        float64 `(units,)`: their order is the one in which they go; a cost below that of a unit before counts as high.

    Raises:
        NonFiniteError: H is not positive definite.
    """
    left, width = _Left.of(products, w, units, damping, where), units.shape[1]
    found = torch.zeros(len(units), dtype=torch.float64, device=w.device)
    floor = torch.zeros((), dtype=torch.float64, device=w.device)
    least = torch.finfo(torch.float64).tiny
    while len(left.units):
        costs = left.costs(width)
        count = min(max(group // width, 1), len(costs))
        lowest = torch.argsort(costs, stable=True)[:count]
        for place in lowest.tolist():
            floor = torch.maximum(floor * (1 + 1e-9) + least, costs[place])
            found[left.units[place]] = floor
        if count == len(costs):
            break
        left.remove(lowest, width)
    return found


class _Left:
    """What is left of a matrix: W, H⁻¹, and which units their columns are of, `width` after `width`."""

    def __init__(self, w: Tensor, inverse: Tensor, units: Tensor):
        self.w, self.inverse, self.units = w, inverse, units
        self.there = torch.arange(len(units), dtype=torch.int64, device=w.device)  # place of each unit in W

    @classmethod
    def of(cls, products: Tensor, w: Tensor, units: Tensor, damping: float, where: str) -> _Left:
        columns = units.flatten()
        h = products.double()[columns][:, columns]
        strength = damping * float(h.diagonal().mean())
        h.diagonal().add_(strength or 1.0)  # nothing flows in: any order will do
        factor, failed = torch.linalg.cholesky_ex(h)
        if failed:
            raise NonFiniteError(f"{where}: XᵀX + λI is not positive definite; give a larger damping")
        number = torch.arange(len(units), dtype=torch.int64, device=w.device)
        return cls(w.double()[:, columns], torch.cholesky_inverse(factor), number)

    def costs(self, width: int) -> Tensor:
        """E of each unit that is left."""
        if width == 1:
            return (self.w.square().sum(0) / self.inverse.diagonal())[self.there]
        places = self._columns(self.there, width)  # (units, width)
        blocks = self.inverse[places[:, :, None], places[:, None, :]]  # (units, width, width)
        own = self.w[:, places].permute(1, 2, 0)  # (units, width, out)
        return (own * torch.linalg.solve(blocks, own)).sum((1, 2))

    def remove(self, lowest: Tensor, width: int) -> None:
        """Takes units out, by their places among those that are left."""
        s = self._columns(self.there[lowest], width).flatten()
        rows = self.inverse[s]  # (gone, in)
        step = torch.linalg.solve(rows[:, s], rows)
        self.w -= self.w[:, s] @ step
        self.inverse -= rows.T @ step
        stays = torch.ones(len(self.there), dtype=torch.bool, device=lowest.device)
        stays[lowest] = False
        self.there, self.units = self.there[stays], self.units[stays]
        if len(self.there) * width <= _SHRINK * len(self.inverse):
            columns = self._columns(self.there, width).flatten()
            self.w, self.inverse = self.w[:, columns], self.inverse[columns][:, columns]
            self.there = torch.arange(len(self.there), dtype=torch.int64, device=lowest.device)

    @staticmethod
    def _columns(places: Tensor, width: int) -> Tensor:
        return places[:, None] * width + torch.arange(width, dtype=torch.int64, device=places.device)
