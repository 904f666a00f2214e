"""What a least-squares fit of a matrix needs to know of X and Y, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed import add_up
from ..errors import NonFiniteError


@dataclass(frozen=True)
class Moments:
    """Sums over tokens; x is what flows into the kept columns of a matrix, y what the whole matrix gave in kept rows.

    Products are summed in float64.

    Attributes:
        where: name of the matrix, for messages.
        tokens: their number, n.
        xx: XᵀX, `(kept, kept)`, float64.
        yx: YᵀX, `(out, kept)`.
        x: Σ x, `(kept,)`.
        y: Σ y, `(out,)`.
        yy: Σ y², `(out,)`.
    """

    where: str
    tokens: int
    xx: Tensor
    yx: Tensor
    x: Tensor
    y: Tensor
    yy: Tensor

    @classmethod
    def gather(
        cls,
        pairs: Iterable[tuple[Tensor, Tensor]],
        kept: Tensor,
        rows: Tensor,
        where: str,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Moments:
        """Adds up batches of all processes.

        Args:
            pairs: X `(…, in)` of all columns, and Y `(…, out)` of all rows, of the same tokens.
            kept: the columns that stay, int64.
            rows: that stay, int64.
            where: its name, for messages.
            dtype: in which products are taken; float64 where means are to be subtracted, which cancels.

        Raises:
            NonFiniteError: an input or output is NaN or infinite.
        """
        width, out, device = len(kept), len(rows), kept.device
        shapes = ((width, width), (out, width), (width,), (out,), (out,), (1,))
        sums = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
        for whole_x, whole_y in pairs:
            x = whole_x.reshape(-1, whole_x.shape[-1]).to(device).index_select(1, kept).to(dtype)
            y = whole_y.reshape(-1, whole_y.shape[-1]).to(device).index_select(1, rows).to(dtype)
            xx, yx, *lines, tokens = sums
            xx += x.T @ x  # one product at a time: of a wide MLP they are large
            yx += y.T @ x
            for total, part in zip(lines, (x.sum(0), y.sum(0), y.square().sum(0)), strict=True):
                total += part
            tokens += len(x)
            del whole_x, whole_y, x, y  # not beside the next batch's
        add_up(*sums)
        if not all(torch.isfinite(total).all() for total in sums):
            raise NonFiniteError(
                f"{where}: what flows through it is not finite, so it cannot be refitted; check the model's"
                " weights, or load it in bfloat16 or float32"
            )
        return cls(where, int(sums.pop()), *sums)

    def centred(self) -> Moments:
        """The moments of x − x̄ and y − ȳ."""
        n, x, y = max(self.tokens, 1), self.x, self.y
        xx, yx = self.xx - torch.outer(x, x) / n, self.yx - torch.outer(y, x) / n
        return Moments(self.where, self.tokens, xx, yx, 0 * x, 0 * y, self.yy - y.square() / n)

    def intercept(self, w: Tensor) -> Tensor:
        """b = ȳ − W·x̄."""
        return (self.y - w @ self.x) / max(self.tokens, 1)

    def error(self, w: Tensor, b: Tensor | None = None) -> float:
        """‖X·Wᵀ + b − Y‖²/‖Y‖²."""
        w = w.double()
        squares = self.yy - 2 * (w * self.yx).sum(1) + (w @ self.xx * w).sum(1)
        if b is not None:
            b = b.double()
            squares = squares + self.tokens * b.square() + 2 * b * (w @ self.x - self.y)
        limits = torch.finfo(torch.float64)  # outputs that are all zero: still a number that JSON holds
        return min(float(squares.clamp(min=0).sum() / self.yy.sum().clamp(min=limits.tiny)), limits.max)
