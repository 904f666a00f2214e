"""Algorithm 1 on the engine: δ is updated inside the backward pass, matrix by matrix.

With `relative` steps ρ and γ of a matrix W are multiples of s_W = ‖W‖_F/‖g_W‖_F, g_W its gradient at the first step:

    ρ_W = ρ·s_W    γ_W = γ·s_W          the envelope of the norm Σ_W ‖δ_W‖²/(2ρ_W)

The first step makes δ ← −g, whose norm gives s_W, and then δ ← γ_W·δ: no pass more, and one number more per matrix.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.progress import progress
from .engine import GradientEngine, Micro, Sum
from .noise import Noise, for_pieces
from .state import State

logger = logging.getLogger(__name__)

# Row norms ‖δ_S‖₂ of one matrix → α of its group soft threshold.
Threshold = Callable[[Tensor], Tensor | float]


@dataclass(frozen=True)
class MoreauRun:
    """Gradient of the Moreau envelope of the smoothed loss (Algorithm 1).

    Attributes:
        engine: of the model and the weights in scope.
        batches: token ids, each `(windows, length)`, with their shares of the gradient.
        noise: of the smoothing.
        rho: ρ.
        step_size: γ.
        steps: T.
        noise_samples: m, draws per step.
        threshold: of the rows of each matrix, for MoreauPruner-GS.
        everywhere: the batches of all processes make one gradient; otherwise each process has a δ of its own.
        relative: ρ and γ are multiples of s_W, which `State.scales` keeps.
    """

    engine: GradientEngine
    batches: Sequence[tuple[Tensor, float]]
    noise: Noise
    rho: float
    step_size: float
    steps: int
    noise_samples: int = 1
    threshold: Threshold | None = None
    everywhere: bool = True
    relative: bool = False

    def iterate(self, delta: State) -> Iterator[int]:
        """Runs the steps that are left of T, and yields after each its number, from 1; −δ/ρ_W is the gradient.

        Args:
            delta: δ; after each step it is committed when the iteration goes on.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; names the step.
        """
        if delta.step:
            logger.warning("going on after step %d of %d, from %s", delta.step, self.steps, delta.folder)
        loss = [math.nan]
        for t in progress(range(delta.step, self.steps), "Moreau steps", note=lambda: f"loss {loss[0]:.4f}"):
            loss[0] = self.engine.run(
                self._micros(t, delta),
                lambda name, g, scale: self._update(delta, name, g, scale),
                into=lambda name, dtype: self._sum(delta, name, dtype),
                everywhere=self.everywhere,
            )
            delta.scales = {name: float(scale) for name, scale in delta.scales.items()}
            yield t + 1
            delta.commit()

    def _micros(self, t: int, delta: State) -> list[Micro]:
        return [
            Micro(batch, share / self.noise_samples, self._moved(t, i, delta), f"step {t + 1}, draw {i + 1}")
            for i in range(self.noise_samples)
            for batch, share in self.batches
        ]

    def _moved(self, t: int, draw: int, delta: State) -> Callable[[str, Tensor, Tensor], Tensor]:
        def moved(name: str, w: Tensor, out: Tensor) -> Tensor:
            return self.noise.moved(w, delta.get(name, w.device), name, t, draw, out=out)

        return moved

    def _sum(self, delta: State, name: str, dtype: torch.dtype) -> Sum | None:
        if dtype != delta.dtype:
            return None
        # δ ← (1 − γ/ρ)·δ − γ·g                                   (Algorithm 1, line 5)
        place, step_size = delta.place(name, self.engine.device(name)), self.step_size * self._scale(delta, name)
        return Sum(place, 1 - self.step_size / self.rho, -step_size, lambda d: self._end(delta, name, d))

    def _scale(self, delta: State, name: str) -> float:
        """What ρ and γ are multiplied by: s_W; before it is known 1/γ, so that the first step makes −g of δ = 0."""
        if self.relative and not delta.step:
            return 1 / self.step_size
        return delta.scales.get(name, 1.0)

    def _update(self, delta: State, name: str, g: Tensor, scale: float) -> None:
        d = delta.place(name, g.device)
        flat, flat_g = d.view(-1), g.reshape(-1)
        s = self._scale(delta, name)

        def step(index: int, piece: slice) -> None:
            old = flat[piece]
            new = proximal_step(old.float(), flat_g[piece], rho=self.rho * s, step_size=self.step_size * s, scale=scale)
            if new.data_ptr() != old.data_ptr():
                old.copy_(new)

        for_pieces(step, flat)
        self._end(delta, name, d)

    def _end(self, delta: State, name: str, d: Tensor) -> None:
        if self.relative and not delta.step:
            # s_W = ‖W‖/‖−g‖, δ ← γ_W·(−g); a tensor until the step ends, so that no matrix waits for its number
            scale = delta.scales[name] = step_scale(self.engine.weight(name), d)
            d.mul_(self.step_size * scale)
        if self.threshold is not None:
            # δ ← GST_γη(δ)                                           (Algorithm 1, line 7)
            norm = torch.linalg.vector_norm(d, dim=1, keepdim=True, dtype=torch.float32)
            d.mul_(shrink(norm, self.threshold(norm)))
        delta.put(name, d)


def proximal_step(delta: Tensor, g: Tensor, *, rho: float, step_size: float, scale: float = 1.0) -> Tensor:
    """In place: δ ← (1 − γ/ρ)·δ − γ·g (Algorithm 1, line 5), for the gradient `scale`·`g`; returns δ, float32."""
    return delta.mul_(1 - step_size / rho).sub_(g, alpha=step_size * scale)


def step_scale(w: Tensor, g: Tensor) -> Tensor:
    """‖W‖_F/‖g‖_F, a float32 scalar where the tensors are: ρ and γ times this move W by a share of itself.

    δ* ≈ −ρ·g where the gradient changes little, so that ρ = ρ̂·‖W‖_F/‖g‖_F gives ‖δ*‖_F ≈ ρ̂·‖W‖_F, whatever the scale
    of the loss and of the weights. 1 where either is zero: no step is one then, or no score.
    """
    of_w, of_g = (torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in (w, g))
    return torch.where((of_w > 0) & (of_g > 0), of_w / of_g, torch.ones_like(of_w))


def shrink(norm: Tensor, alpha: Tensor | float) -> Tensor:
    """Factor max(0, 1 − α/‖v_S‖₂) of the group soft threshold, for the `norm` ‖v_S‖₂ of each group.

    GST_α(v)_S = 0 if ‖v_S‖₂ ≤ α, else (1 − α/‖v_S‖₂)·v_S, which shrinks the norm of each group by α.
    """
    return torch.where(norm > alpha, 1 - alpha / norm.clamp_min(torch.finfo(norm.dtype).tiny), torch.zeros_like(norm))
