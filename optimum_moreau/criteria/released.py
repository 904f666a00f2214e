"""The update of MoreauPruner's published code, for comparison with published figures (`released=True`).

It departs from Algorithm 1 in five ways (verified by running that code):

- the proximal term has no gradient path, so ρ never reaches the update: δ ← δ − γ·g;
- the group norm is the row's RMS; a row is kept where RMS > η·γ, but shrunk by 1 − η/RMS, which is negative for rows
  with η·γ < RMS < η: their δ alternates in sign from step to step, and larger gradients score lower;
- the score is the mean of the last five iterates;
- noise and δ live on every parameter, embeddings, norms and head included, with one draw per step;
- `moreau` has no group threshold.

Vectors (norm weights, biases) count as one row. This is a plain reference path: it holds δ for the whole model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..envelope import LossGradient, Tensors, smoothed_gradient
from .run import Scoring


def released_gradient(run: Scoring) -> Tensors:
    """Returns −δ/ρ by parameter name in float32, δ the mean of the last iterates of the published update."""
    c = run.config.criterion
    weights = {name: parameter.detach() for name, parameter in run.model.named_parameters()}
    gradient = LossGradient(run.model, run.batches)
    delta = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    mean = {name: torch.zeros_like(d) for name, d in delta.items()}
    last = min(c.average_last, c.steps)
    for t in range(c.steps):
        g = smoothed_gradient(gradient, weights, run.noise(), step=t, delta=delta)
        for name, d in delta.items():
            d.sub_(g.pop(name), alpha=c.step_size)  # δ ← δ − γ·g
            if (eta := getattr(c, "eta", None)) is not None:
                d.mul_(released_shrink(d, eta, c.step_size))
            if t >= c.steps - last:
                mean[name].add_(d, alpha=1 / last)
    return {name: m.div_(-c.rho) for name, m in mean.items()}


def released_shrink(delta: Tensor, eta: float, step_size: float) -> Tensor:
    """Returns per row 1 − η/RMS where RMS > η·γ, else 0; broadcasts against `delta`."""
    rms = delta.square().mean(dim=-1, keepdim=True).sqrt()
    factor = 1 - eta / rms.clamp_min(torch.finfo(rms.dtype).tiny)
    return torch.where(rms > eta * step_size, factor, torch.zeros_like(rms))
