"""What a least-squares fit of a matrix needs to know of X and T, gathered batch by batch.

Tokens may weigh s each: then every sum below is of s·x·xᵀ, s·t·xᵀ, s·x, …, and n is Σ s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..distributed import add_up
from ..errors import NonFiniteError

# Which fold a batch is of, X `(…, in)` of all columns, T `(…, out)` of all rows, and s `(…)`: of the same tokens.
Flow = tuple[int, Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Moments:
    """Sums over tokens; x is what flows into the kept columns of a matrix, t what it should give in the kept rows.

    Products are summed in float64.

    Attributes:
        where: name of the matrix, for messages.
        tokens: their number.
        weight: n, what they weigh together.
        xx: XᵀX, `(kept, kept)`, float64.
        tx: TᵀX, `(out, kept)`.
        x: Σ x, `(kept,)`.
        t: Σ t, `(out,)`.
        tt: Σ t², `(out,)`.
        part: which share of all that is to be fitted is here: less than one in a fold.
    """

    where: str
    tokens: int
    weight: float
    xx: Tensor
    tx: Tensor
    x: Tensor
    t: Tensor
    tt: Tensor
    part: float = 1.0

    @classmethod
    def gather(
        cls,
        flows: Iterable[Flow],
        kept: Tensor,
        rows: Tensor,
        where: str,
        *,
        folds: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Moments, ...]:
        """Adds up batches of all processes, each in its fold.

        Args:
            flows: of this process.
            kept: the columns that stay, int64.
            rows: that stay, int64.
            where: its name, for messages.
            folds: their number.
            dtype: in which products are taken; float64 where means are to be subtracted, which cancels.

        Raises:
            NonFiniteError: an input or what should come out is NaN or infinite.
        """
        width, out, device = len(kept), len(rows), kept.device
        shapes = ((width, width), (out, width), (width,), (out,), (out,), (1,), (1,))
        made = [[torch.zeros(s, dtype=torch.float64, device=device) for s in shapes] for _ in range(folds)]
        for fold, x, t, s in flows:
            _add(made[fold], x.to(device), t.to(device), s, kept, rows, dtype)
            del x, t, s  # not beside the next batch's
        add_up(*(total for sums in made for total in sums))
        if not all(torch.isfinite(total).all() for sums in made for total in sums):
            raise NonFiniteError(
                f"{where}: what flows through it is not finite, so it cannot be refitted; check the model's"
                " weights, or load it in bfloat16 or float32"
            )
        weights = [float(sums[-2]) for sums in made]
        parts = [weight / (sum(weights) or 1.0) for weight in weights]
        return tuple(
            cls(where, int(tokens), weight, xx, tx, x, t, tt, part or 1.0)
            for (xx, tx, x, t, tt, _, tokens), weight, part in zip(made, weights, parts, strict=True)
        )

    def absorb(self, other: Moments) -> Moments:
        """In place: the sums over the tokens of both; those of the other are left as they are."""
        for mine, its in zip(self._sums, other._sums, strict=True):
            mine += its
        tokens, weight, part = self.tokens + other.tokens, self.weight + other.weight, self.part + other.part
        return replace(self, tokens=tokens, weight=weight, part=part)

    @property
    def _sums(self) -> tuple[Tensor, ...]:
        return self.xx, self.tx, self.x, self.t, self.tt

    def centred(self) -> Moments:
        """The moments of x − x̄ and t − t̄."""
        n, x, t = self.weight or 1.0, self.x, self.t
        xx, tx = self.xx - torch.outer(x, x) / n, self.tx - torch.outer(t, x) / n
        return Moments(self.where, self.tokens, self.weight, xx, tx, 0 * x, 0 * t, self.tt - t.square() / n, self.part)

    def intercept(self, w: Tensor) -> Tensor:
        """b = t̄ − W·x̄."""
        return (self.t - w @ self.x) / (self.weight or 1.0)

    def squares(self, w: Tensor, b: Tensor | None = None) -> float:
        """‖X·Wᵀ + b − T‖²."""
        w = w.double()
        found = self.tt - 2 * (w * self.tx).sum(1) + (w @ self.xx * w).sum(1)
        if b is not None:
            b = b.double()
            found = found + self.weight * b.square() + 2 * b * (w @ self.x - self.t)
        return float(found.clamp(min=0).sum())

    @property
    def size(self) -> float:
        """‖T‖²; never zero."""
        return float(self.tt.sum().clamp(min=torch.finfo(torch.float64).tiny))


def _add(
    sums: list[Tensor],
    whole_x: Tensor,
    whole_t: Tensor,
    s: Tensor | None,
    kept: Tensor,
    rows: Tensor,
    dtype: torch.dtype,
) -> None:
    """In place: adds one batch, X `(…, in)` and T `(…, out)`."""
    xx, tx, *lines, weight, tokens = sums
    x = whole_x.flatten(0, -2).index_select(1, kept).to(dtype)
    t = whole_t.flatten(0, -2).index_select(1, rows).to(dtype)
    tokens += len(x)
    root: Tensor | float = 1.0
    if s is not None:
        root = s.reshape(-1, 1).to(x.device).to(dtype).sqrt()
        x, t = x * root, t * root
    xx += x.T @ x  # one product at a time: of a wide MLP they are large
    tx += t.T @ x
    for total, part in zip(lines, ((root * x).sum(0), (root * t).sum(0), t.square().sum(0)), strict=True):
        total += part
    weight += len(x) if s is None else s.sum()
