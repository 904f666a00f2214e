"""How the zeros of an unstructured mask are spread.

uniform   every matrix has the same share
global    one ranking of all weights in scope, by their scores in the dense model
owl       layer l keeps k_l = (1 − S) + 2λ·d_l − mean(2λ·d), by its share of outliers among |W|·√A, as units do
          (budgets/spread.py)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..budgets.spread import owl_gains
from ..scoring.profiles import outlier_share
from .patterns import Pattern, keep_mask


def owl_sparsity(scores: Mapping[int, list[Tensor]], sparsity: float) -> dict[int, float]:
    """The share of zeros of each layer.

    Args:
        scores: Wanda's, of every matrix of every layer.
        sparsity: S, over all of them.

    Returns:
        Layer → its share, within λ of S or so, and S in the mean over all weights.
    """
    sizes = {layer: sum(matrix.numel() for matrix in matrices) for layer, matrices in scores.items()}
    gains = dict(zip(scores, owl_gains([outlier_share(matrices) for matrices in scores.values()]), strict=True))
    mean_gain = sum(gains[layer] * sizes[layer] for layer in gains) / sum(sizes.values())
    return {layer: min(max(sparsity - gain + mean_gain, 0.0), 1.0) for layer, gain in gains.items()}


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Which weights stay, of every matrix, by one ranking of all: name → bool `(out, in)`."""
    line = torch.cat([matrix.flatten() for matrix in scores.values()])
    mask = keep_mask(line[None], Pattern(), sparsity, "row")[0]
    parts = mask.split([matrix.numel() for matrix in scores.values()])
    return {name: part.view_as(matrix) for (name, matrix), part in zip(scores.items(), parts, strict=True)}
