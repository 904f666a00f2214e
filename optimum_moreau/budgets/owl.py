"""OWL: p_l = p − 2λ·d_l + mean(2λ·d), d_l = (D_l − min D)/(max D − min D); λ = 0.08.

D_l is the share of the layer's weights whose |W|·√A is more than M times their mean; M = 5. Where a p_l is more, or
less, than the layer can give, it gives what it can, and the others the rest, by the same shift for all. Of a mask,
layer l keeps k_l = (1 − S) + 2λ·d_l − mean(2λ·d).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from ..criteria.papers import OWL_PAPER
from ..criteria.ria import norms
from .budget import Budget, level

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models.units import Block
    from ..scoring.profiles import Measuring
    from ..scoring.scores import Ranking
    from .budget import Shares


@settings
class OWL(Budget):
    """Layers with more outliers keep more."""

    name = "owl"
    summary = "layers with more outliers among |W|·√A keep more"
    paper = OWL_PAPER
    measured = True
    of_masks = True

    strength: float = setting("λ: how far a layer's share may lie from the mean", default=0.08, affects="plan", ge=0.0)
    outlier: float = setting(
        "M: an outlier is more than M times the layer's mean", default=5.0, affects="scores", gt=0.0
    )

    def measure(self, run: Measuring) -> dict[str, Tensor]:
        """D of every layer, over all of its matrices, in one forward pass."""
        import torch

        from ..models.stream import LayerStream
        from ..scoring.profiles import profile_name

        found = []
        for streamed in LayerStream(run.model, run.batches, len(run.tokens)):
            cuts = (cut for block in run.shape.blocks if block.layer == streamed.index for cut in block.cuts)
            names = list(dict.fromkeys(cut.module for cut in cuts))  # a fused matrix once
            inputs = streamed.gather(names, ("squares",))
            found.append(self.outlier_share([_flow(streamed.layer, name, inputs[name].squares) for name in names]))
        return {profile_name(self.name): torch.tensor(found, dtype=torch.float64, device="cpu")}

    def outlier_share(self, matrices: Sequence[Tensor]) -> float:
        """D of one layer: the share of the entries of some matrices that are more than M times the mean of all."""
        import torch

        size = sum(matrix.numel() for matrix in matrices)
        mean = sum(float(matrix.sum(dtype=torch.float64)) for matrix in matrices) / size
        return sum(int((matrix > self.outlier * mean).sum()) for matrix in matrices) / size

    def shares(self, blocks: Sequence[Block], share: float, values: Ranking, most: Sequence[float]) -> Shares:
        """p, shifted."""
        from ..scoring.profiles import of_layers

        gains = self.gains(of_layers(values, self.name, blocks))
        return level(blocks, share, most, lambda t: [t - gain for gain in gains])

    def sparsity(self, scores: Mapping[int, list[Tensor]], sparsity: float) -> dict[int, float]:
        """The share of zeros of each layer of a mask.

        Args:
            scores: Wanda's, of every matrix of every layer.
            sparsity: S, over all of them.

        Returns:
            Layer → its share, within λ of S or so, and S in the mean over all weights.
        """
        sizes = {layer: sum(matrix.numel() for matrix in matrices) for layer, matrices in scores.items()}
        gains = dict(zip(scores, self.gains([self.outlier_share(own) for own in scores.values()]), strict=True))
        mean_gain = sum(gains[layer] * sizes[layer] for layer in gains) / sum(sizes.values())
        return {layer: min(max(sparsity - gain + mean_gain, 0.0), 1.0) for layer, gain in gains.items()}

    def gains(self, outliers: Sequence[float]) -> list[float]:
        """2λ·d_l: by how much more of itself each layer keeps than the one with the fewest outliers."""
        low, high = min(outliers), max(outliers)
        return [2 * self.strength * (found - low) / (high - low) if high > low else 0.0 for found in outliers]


def _flow(layer: nn.Module, name: str, squares: Tensor | None) -> Tensor:
    """|W|·√A, `(out, in)`."""
    from ..models.placement import loaded

    return loaded(layer.get_submodule(name), "weight").float().abs() * norms(squares)
