"""Algorithm 1 as it is written, on whole dictionaries of tensors: the oracle of the engine, and the path of `released`.

Everything here works on dictionaries name → tensor and on a function that returns the gradient at given weights;
`LossGradient` is that function for a causal language model. It holds several copies of the weights in scope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import NonFiniteError
from ..models.hooks import first_non_finite
from .moreau import proximal_step, step_scale
from .noise import Noise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tensors = dict[str, Tensor]
Prox = Callable[[Tensors], Tensors]


class Gradient(Protocol):
    """∇f at given weights; `at` says for messages where the computation stands."""

    def __call__(self, weights: Mapping[str, Tensor], at: str) -> Tensors:
        """Returns ∇f in float32, by name."""
        ...


def moreau_gradient(
    gradient: Gradient,
    weights: Mapping[str, Tensor],
    *,
    rho: float,
    step_size: float,
    steps: int,
    noise: Noise,
    noise_samples: int = 1,
    average_last: int = 1,
    prox: Prox | None = None,
    relative: bool = False,
) -> Tensors:
    """Gradient of the Moreau envelope of the smoothed loss at `weights` (Algorithm 1).

    Args:
        gradient: ∇f.
        weights: w; not changed.
        rho: ρ.
        step_size: γ.
        steps: T.
        noise: of the smoothing.
        noise_samples: m, draws per step.
        average_last: the mean over this many last iterates is returned.
        prox: applied to δ after each step, for MoreauPruner-GS the group soft threshold.
        relative: ρ and γ of each matrix are multiples of ‖W‖_F/‖g_W‖_F, g_W the gradient of the first step.

    Returns:
        −δ/ρ in float32, by name: the gradient with its sign.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; names the step.
    """
    delta = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    scales = dict.fromkeys(delta, 1.0)
    total = {name: torch.zeros_like(d) for name, d in delta.items()} if average_last > 1 else None
    for t in tqdm(range(steps), desc="Moreau steps", leave=False, disable=None):
        g = smoothed_gradient(gradient, weights, noise, draws=noise_samples, step=t, delta=delta)
        if not t and relative:
            scales = {name: float(step_scale(weights[name], g[name])) for name in delta}
        for name, d in delta.items():
            proximal_step(d, g.pop(name), rho=rho * scales[name], step_size=step_size * scales[name])
        if prox is not None:
            delta = prox(delta)  # δ ← GST_γη(δ)                      (Algorithm 1, line 7)
        if total is not None and t >= steps - average_last:
            for name, d in delta.items():
                total[name] += d
    if total is not None:
        delta = {name: d / min(average_last, steps) for name, d in total.items()}
    return {name: d.div_(-rho * scales[name]) for name, d in delta.items()}


def smoothed_gradient(
    gradient: Gradient,
    weights: Mapping[str, Tensor],
    noise: Noise,
    *,
    draws: int = 1,
    step: int = 0,
    delta: Tensors | None = None,
) -> Tensors:
    """Monte-Carlo gradient of the smoothed loss, (1/m)·Σ_i ∇f(w + δ + z_i), in float32 (Algorithm 1, lines 3-4).

    Args:
        gradient: ∇f.
        weights: w; the noise is relative to it.
        noise: of the smoothing.
        draws: m.
        step: t, part of the seed.
        delta: δ; none for δ = 0.
    """
    mean: Tensors = {}
    for i in range(draws):
        g = gradient(noise.added(weights, delta, step, i), at=f"step {step + 1}, draw {i + 1}")
        for name in weights:
            part = g.pop(name).float().div_(draws)
            mean[name] = mean[name].add_(part) if name in mean else part
    return mean


class LossGradient:
    """Gradient of the mean next-token loss over calibration windows with respect to some weights of a model.

    The model computes with the weights it is given; its own are neither overwritten nor given a `.grad`.

    Args:
        model: a causal language model in `scoring_mode`.
        batches: token ids, each `(windows, length)`; all windows are of one length.
    """

    def __init__(self, model: PreTrainedModel, batches: list[Tensor]):
        self.model = model
        self.batches = batches
        self.windows = sum(len(batch) for batch in batches)

    def __call__(self, weights: Mapping[str, Tensor], at: str) -> Tensors:
        """Returns ∇f in float32 at `weights`, the mean over all windows."""
        total: Tensors = {}
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        for batch in self.batches:
            ids = batch.to(self.model.device)
            with torch.enable_grad():
                # mean over windows and targets of −log p(x_{t+1} | x_≤t)                  (Eq. 1)
                kwargs = {"input_ids": ids, "labels": ids, "use_cache": False}
                loss = torch.func.functional_call(self.model, leaves, kwargs=kwargs).loss
            if not torch.isfinite(loss):
                forward = partial(torch.func.functional_call, self.model, leaves, kwargs=kwargs)
                raise NonFiniteError(f"{at}: the loss is {loss.item()}; {first_non_finite(self.model, forward)}")
            gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            for name in leaves:
                g = gradients.pop(name)
                if not torch.isfinite(g).all():
                    raise NonFiniteError(
                        f"{at}: the gradient of {name} is not finite; load the model in bfloat16 or float32"
                    )
                part = g.float() * (len(batch) / self.windows)
                total[name] = total[name].add_(part) if name in total else part
        return total
