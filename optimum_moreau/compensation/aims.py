"""What should come out of o_proj and down_proj, T.

The residual stream is h in the dense model and h̃ in the pruned one, and what a matrix gives, Y = X·Wᵀ + b, is added to
it m times (`residual_multiplier`; 1). So that h comes back behind the matrix:

    h + m·Y = h̃ + m·(X̃·Vᵀ + b)         T = X̃·Vᵀ = (h + m·Y − h̃)/m − b

A token weighs s = 1/‖h + m·Y‖², so that what is fitted is the error of each token's stream as a share of it: the first
tokens of a text may be a thousand times as large as others, and would own the fit.

With `target="matrix"`, or where a norm lies between (families.py: `adds`), T = Y − b, and what earlier layers have lost
stays lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Aims:
    """How T comes from what the two streams give.

    Attributes:
        adds: what a matrix gives is added to the stream.
        to_stream: T brings the stream back.
        times: m.
    """

    adds: bool
    to_stream: bool
    times: float = 1.0

    def behind(self, stream: Tensor, output: Tensor) -> Tensor:
        """The stream behind a matrix, as the model adds it, in its dtype."""
        return stream + output * self.times if self.times != 1.0 else stream + output

    @staticmethod
    def weight(aim: Tensor) -> Tensor:
        """s of each token, of what should be there, `(…, out)`; zero where that is nothing, which has no shares."""
        squares = aim.float().square().sum(-1)
        return torch.where(squares > torch.finfo(squares.dtype).tiny ** 0.5, 1 / squares, 0.0)

    def should_give(self, aim: Tensor, stream: Tensor, bias: Tensor | None) -> Tensor:
        """T, in float32 or more.

        Args:
            aim: `behind` of the dense stream, or with another target what the dense matrix gives.
            stream: the pruned one before the matrix.
            bias: b.
        """
        wide = aim.float() if aim.element_size() < 4 else aim
        if self.to_stream:
            wide = (wide - stream.to(wide.device)) / self.times
        return wide if bias is None else wide - bias.to(wide.device)
