"""The two updates of δ in Algorithm 1, and the scale of its steps."""

from __future__ import annotations

import torch
from torch import Tensor


def proximal_step(delta: Tensor, g: Tensor, *, rho: float, step_size: float, scale: float = 1.0) -> Tensor:
    """In place: δ ← (1 − γ/ρ)·δ − γ·g (Algorithm 1, line 5), for the gradient `scale`·`g`; returns δ.

    Args:
        delta: δ, float32.
        g: in any dtype.
        rho: ρ.
        step_size: γ.
        scale: what `g` is to be multiplied by.
    """
    return delta.mul_(1 - step_size / rho).sub_(g, alpha=step_size * scale)


def step_scale(w: Tensor, g: Tensor) -> Tensor:
    """‖W‖_F/‖g‖_F, a float32 scalar where the tensors are: ρ and γ times this move W by a share of itself.

    δ* ≈ −ρ·g where the gradient changes little, so that ρ = ρ̂·‖W‖_F/‖g‖_F gives ‖δ*‖_F ≈ ρ̂·‖W‖_F, whatever the scale
    of the loss and of the weights. 1 where either is zero: no step is one then, or no score.

    Args:
        w: W.
        g: its gradient, in any dtype.
    """
    of_w, of_g = (torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in (w, g))
    return torch.where((of_w > 0) & (of_g > 0), of_w / of_g, torch.ones_like(of_w))


def shrink(norm: Tensor, alpha: Tensor | float) -> Tensor:
    """Factor max(0, 1 − α/‖v_S‖₂) of the group soft threshold, per group.

    GST_α(v)_S = 0 if ‖v_S‖₂ ≤ α, else (1 − α/‖v_S‖₂)·v_S, which shrinks the norm of each group by α.

    Args:
        norm: ‖v_S‖₂ per group.
        alpha: α ≥ 0.
    """
    return torch.where(norm > alpha, 1 - alpha / norm.clamp_min(torch.finfo(norm.dtype).tiny), torch.zeros_like(norm))
