"""How the zeros of an unstructured mask are spread.

uniform   every matrix has the same share
global    one ranking of all weights in scope, by their scores in the dense model
owl       layer l keeps k_l = (1 − S) + 2λ·d_l − mean(2λ·d), by its share of outliers among |W|·√A, as units do
          (budgets/owl.py)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .patterns import Pattern, keep_mask


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Which weights stay, of every matrix, by one ranking of all: name → bool `(out, in)`."""
    line = torch.cat([matrix.flatten() for matrix in scores.values()])
    mask = keep_mask(line[None], Pattern(), sparsity, "row")[0]
    parts = mask.split([matrix.numel() for matrix in scores.values()])
    return {name: part.view_as(matrix) for (name, matrix), part in zip(scores.items(), parts, strict=True)}
