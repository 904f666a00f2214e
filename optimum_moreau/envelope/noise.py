"""The smoothing noise, made from a seed for any weight at any step, in any order and on any number of devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..distributed import seed_of

# On a CPU a weight is worked on in pieces that stay in the cache, each with its own seed; elsewhere it is one piece.
_PIECE = 131072


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the weights: z ~ N(0, (σ|w|)²) elementwise (paper, appendix E.2), or N(0, σ²) (Theorem 1).

    Attributes:
        sigma: σ; 0 for none.
        relative: scale by |w|, of the original w and never of w + δ.
        seed: of the run.
    """

    sigma: float
    relative: bool = True
    seed: int = 0

    def moved(
        self, weight: Tensor, delta: Tensor | None, name: str, step: int, draw: int, *, out: Tensor | None = None
    ) -> Tensor:
        """Returns w + δ + z in the weight's dtype; z's seed is of (seed, step, draw, name), so order does not matter.

        Args:
            weight: w, contiguous.
            delta: δ, of the weight's shape; none for δ = 0.
            name: the parameter's name.
            step: t of Algorithm 1, from 0.
            draw: i of Algorithm 1, from 0.
            out: where to write it, contiguous, of the weight's shape, dtype and device.
        """
        out = torch.empty_like(weight) if out is None else out
        w, v = weight.detach().reshape(-1), out.view(-1)
        d = None if delta is None else delta.reshape(-1)
        seed = seed_of(self.seed, step, draw, name)

        def move(index: int, piece: slice) -> None:
            w32 = w[piece].float()
            moved = self._with_noise(w32, w32, seed + index) if self.sigma else w32.clone()
            v[piece].copy_(moved if d is None else moved.add_(d[piece]))

        for_pieces(move, w)
        return out

    def _with_noise(self, start: Tensor, weight: Tensor, seed: int) -> Tensor:
        """Returns start + z. σ·|w|·N and σ·w·N are the same in law, and the latter is one product."""
        z = standard_normal(weight, seed)
        return torch.addcmul(start, z, weight, value=self.sigma) if self.relative else start.add(z, alpha=self.sigma)


def standard_normal(like: Tensor, seed: int) -> Tensor:
    """Normal numbers in float32, of a flat tensor's size and device, from a seed.

    On a CPU they are quantiles of the normal distribution at 65536 equally likely places: mean 0, variance 1, kurtosis
    2.999, none beyond ±4.33; about twice as fast as torch's generator, which other devices use.
    """
    if like.device.type != "cpu":
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.empty(like.shape, dtype=torch.float32, device=like.device).normal_(generator=generator)
    places = np.random.SFC64(seed).random_raw(-(-len(like) // 4)).view(np.uint16)[: len(like)]
    return torch.from_numpy(np.take(_quantiles(), places, mode="clip"))


@cache
def _quantiles() -> np.ndarray:
    """The normal quantiles at (k + ½)/65536, scaled to variance 1, float32 `(65536,)`."""
    places = (torch.arange(65536, dtype=torch.float64, device="cpu") + 0.5) / 65536
    quantiles = torch.special.ndtri(places)
    return (quantiles / quantiles.square().mean().sqrt()).float().numpy()


def for_pieces(action: Callable[[int, slice], object], like: Tensor) -> None:
    """Runs an action on every piece of a flat tensor, given the piece's number and place."""
    size = _PIECE if like.device.type == "cpu" else max(len(like), 1)
    for index, start in enumerate(range(0, len(like), size)):
        action(index, slice(start, start + size))
