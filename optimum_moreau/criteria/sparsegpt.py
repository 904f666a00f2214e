"""SparseGPT's score: what removing a weight costs a layer's outputs, the others adjusted (optimal brain surgeon).

H = (2/n)·Σ x xᵀ + 0.01·mean(diag)·I        U upper Cholesky factor of H⁻¹ = UᵀU        score W²/U_jj²

Without its update of the other weights, as here, the score is static: U is that of the dense layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.settings import setting, settings
from ..errors import NonFiniteError
from .criterion import Criterion
from .papers import SPARSE_GPT

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.stream import Inputs


@settings
class SparseGPT(Criterion):
    """W²/U_jj²; masks with its update, units static."""

    name = "sparsegpt"
    summary = "W²/U_jj², from the inputs' Hessian; masks with its update, units static"
    paper = SPARSE_GPT
    needs = ("activations",)
    statistics = ("products",)
    by_layer = True
    mask_group = "layer"  # in blocks of 128 columns, where the update chooses

    damping: float = setting("share of the Hessian's mean diagonal that is added to its diagonal", default=0.01, gt=0)

    def elements(self, name: str, w: Tensor, inputs: Inputs, seed: int) -> Tensor:
        """W²/U_jj²."""
        upper, dead = inverse_factor(inputs, self.damping, name)
        found = w.square() / upper.diagonal().square()
        found[:, dead] = 0
        return found


def inverse_factor(inputs: Inputs, damping: float, where: str) -> tuple[Tensor, Tensor]:
    """Returns U, float32 `(in, in)`, and which inputs never fire, bool `(in,)`: they get a one on H's diagonal.

    Args:
        inputs: with `products`.
        damping: share of the mean diagonal that is added to it.
        where: the layer, for messages.

    Raises:
        NonFiniteError: H is not positive definite.
    """
    import torch

    assert inputs.products is not None  # asked for
    h = inputs.products * (2 / inputs.samples)
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    h.diagonal().add_(damping * h.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(h)
    if not failed:
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed:
        raise NonFiniteError(
            f"{where}: the Hessian of {inputs.tokens} tokens is not positive definite over {len(h)} inputs; calibrate"
            f" on more text (calibration_samples, sequence_length), or raise damping ({damping:g})"
        )
    return upper, dead
