"""Optimal brain surgeon, column by column: what stays of a row makes up for what goes (SparseGPT).

With H⁻¹ = UᵀU, U upper triangular, column j of W is decided while the columns before it are frozen:

    e = (w_j − ŵ_j) / U_jj          ŵ_j = w_j where the weight stays, 0 where it goes
    w_i ← w_i − e·U_ji              for i ≥ j

Columns are taken in blocks of 128, and the columns behind a block are updated once for all of it. Without a mask, each
block chooses its own, by W²/U_jj² of the weights as they are then: over all rows, or for n:m in every m columns.

A weight that is zero at the start goes too, before all others: it is held at zero, and what the update would have made
of it is made up for by the columns behind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .patterns import Pattern, keep_mask

BLOCK = 128


def surgeon(
    w: Tensor, upper: Tensor, pattern: Pattern, sparsity: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Prunes a matrix and adjusts what stays.

    Args:
        w: weights `(out, in)`, float32; not changed.
        upper: U, `(in, in)`.
        pattern: where zeros may lie.
        sparsity: share of zeros, of an unstructured pattern.
        mask: which weights stay, bool `(out, in)`, but for those that are zero; default: chosen on the way.

    Returns:
        The new weights, and which stay.
    """
    w, zero = w.clone(), w == 0
    chosen = ~zero if mask is None else mask & ~zero
    width = w.shape[1]
    block = BLOCK if not pattern.structured else BLOCK - BLOCK % pattern.of or pattern.of
    for start in range(0, width, block):
        end = min(start + block, width)
        part, u = w[:, start:end], upper[start:end, start:end]
        errors = torch.zeros_like(part)
        if mask is None and not pattern.structured:
            scores = (part.square() / u.diagonal().square()).masked_fill(zero[:, start:end], -1)
            chosen[:, start:end] &= keep_mask(scores, pattern, sparsity, "layer")
        for j in range(end - start):
            if mask is None and pattern.structured and j % pattern.of == 0:
                columns = slice(j, j + pattern.of)
                here = slice(start + j, start + j + pattern.of)
                scores = part[:, columns].square() / u.diagonal()[columns].square()
                chosen[:, here] &= keep_mask(scores.masked_fill(zero[:, here], -1), pattern, 0.0)
            stays = chosen[:, start + j]
            errors[:, j] = torch.where(stays, 0, part[:, j] / u[j, j])
            part[:, j:] -= errors[:, j : j + 1] * u[j : j + 1, j:]
            part[:, j] = torch.where(stays, part[:, j], 0)
        w[:, end:] -= errors @ upper[start:end, end:]
    return w, chosen
