"""Training-free refinement of a mask: weights that went and weights that stay change places (DSnoT, R²-DSnoT).

For one row, with S_j the mean over samples of Σ_tokens x_j, what the pruned weights took from the row's output is

    ε = Σ_pruned W_j·S_j

Each cycle grows back one pruned weight g and prunes one kept weight p instead, so that ε moves towards 0:

    g   for ε > 0 the largest W·S/Var among the pruned, else the smallest
    p   the smallest |W|·√A among the kept whose W·S has the sign that lowers |ε|          (DSnoT)
        the smallest relative importance (|W|/Σ_i|W| + |W|/Σ_j|W|)·(√A)^½ among these       (R²-DSnoT)

A swap that would raise |ε| is rejected, and the row is done; so it is at |ε| ≤ 0.1, or after 50 cycles. In an n:m
pattern p lies in the m inputs of g. Weights that are zero do not grow. The exact formula of R²-DSnoT is not in the text
at hand: this is a reading of it, with relative importance in the pruning rule, where the paper says that in both rules
it hurts; its regulariser, which by the paper matters little, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.stream import Inputs
from .patterns import Pattern
from .refinements import DSnoT

THRESHOLD, CYCLES = 0.1, 50  # as published
STATISTICS = ("squares", "sums")


@dataclass(frozen=True)
class Refined:
    """What a refinement did.

    Attributes:
        mask: which weights stay, bool `(out, in)`.
        before: Σ_rows |ε| before.
        after: Σ_rows |ε| after.
        swaps: number of weights that came back.
    """

    mask: Tensor
    before: float
    after: float
    swaps: int


def refine(w: Tensor, mask: Tensor, inputs: Inputs, pattern: Pattern, how: DSnoT) -> Refined:
    """Improves a mask; no row's |ε| rises, and every row, and every m inputs of n:m, keeps as many weights.

    Args:
        w: the weights before the mask `(out, in)`, float32.
        mask: which stay, bool `(out, in)`.
        inputs: with squares and sums.
        pattern: that the mask follows.
        how: the refinement.
    """
    assert inputs.squares is not None and inputs.sums is not None  # asked for
    tiny = torch.finfo(w.dtype).tiny
    effect = w * inputs.sums  # (out, in), W·S
    growth = effect / inputs.variance.clamp(min=tiny)
    cost, mask = how.cost(w, inputs), mask.clone()
    error = torch.where(mask, 0, effect).sum(dim=1)  # (out,), ε
    before, swaps = float(error.abs().sum()), 0
    active = error.abs() > THRESHOLD
    rows, alive = torch.arange(len(w), dtype=torch.int64, device=w.device), w != 0
    groups = torch.arange(w.shape[1], dtype=torch.int64, device=w.device) // max(pattern.of, 1)
    for _ in range(CYCLES):
        if not active.any():
            break
        sign = error.sign()[:, None]
        gone = ~mask & alive
        grown = torch.where(gone, sign * growth, -torch.inf).argmax(dim=1)
        lowers = mask & (sign * effect < 0)
        if pattern.structured:
            lowers &= groups[None] == (grown // pattern.of)[:, None]
        pruned = torch.where(lowers, cost, torch.inf).argmin(dim=1)
        possible = lowers.any(dim=1) & gone.any(dim=1)
        moved = error - effect[rows, grown] + effect[rows, pruned]
        active &= possible & (moved.abs() <= error.abs())
        mask[rows[active], grown[active]] = True
        mask[rows[active], pruned[active]] = False
        error = torch.where(active, moved, error)
        swaps += int(active.sum())
        active &= error.abs() > THRESHOLD
    return Refined(mask, before, float(error.abs().sum()), swaps)
