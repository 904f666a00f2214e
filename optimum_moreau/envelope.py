"""Gradient of the Gaussian-smoothed loss and of its Moreau envelope (paper: MoreauPruner, Section 4, Algorithm 1).

    smoothed loss     g_σ(w) = E_z f(w + z),  z ~ N(0, σ²)                          (Definition 1)
    Moreau envelope   g_σ^ρ(w) = inf_v g_σ(v) + ‖v − w‖² / (2ρ)                     (Eq. 6)
    its gradient      ∇g_σ^ρ(w) = −(v* − w) / ρ                                     (Eq. 10)

v* is found by gradient steps on δ = v − w, so that w itself is never overwritten. Everything here works on dictionaries
name → tensor and on a function that returns the gradient at given weights; it knows nothing of models or pruning,
except `LossGradient`, which is that function for a causal language model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .errors import NonFiniteError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tensors = dict[str, Tensor]
Prox = Callable[[Tensors], Tensors]


class Gradient(Protocol):
    """∇f at given weights; `at` says for messages where the computation stands."""

    def __call__(self, weights: Mapping[str, Tensor], at: str) -> Tensors:
        """Returns ∇f in float32, by name."""
        ...


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

    def draw(self, weight: Tensor, name: str, step: int, draw: int) -> Tensor:
        """Draws z in float32 for one weight; the seed is made of (seed, step, draw, name), so order does not matter.

        Args:
            weight: w, any shape.
            name: the parameter's name.
            step: t of Algorithm 1, from 0.
            draw: i of Algorithm 1, from 0.
        """
        digest = hashlib.sha256(f"{self.seed}/{step}/{draw}/{name}".encode()).digest()
        generator = torch.Generator(weight.device).manual_seed(int.from_bytes(digest[:7], "big"))
        z = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=torch.float32)
        z *= self.sigma
        return z.mul_(weight.detach().float().abs()) if self.relative else z

    def added(self, weights: Mapping[str, Tensor], delta: Tensors | None, step: int, draw: int) -> Tensors:
        """Returns w + δ + z in the weights' dtype."""
        moved = {}
        for name, w in weights.items():
            v = w.detach().float() if delta is None else w.detach().float() + delta[name]
            moved[name] = (v + self.draw(w, name, step, draw) if self.sigma else v).to(w.dtype)
        return moved


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

    Returns:
        −δ/ρ in float32, by name: the gradient with its sign.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; names the step.
    """
    delta = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    total = {name: torch.zeros_like(d) for name, d in delta.items()} if average_last > 1 else None
    for t in tqdm(range(steps), desc="Moreau steps", leave=False, disable=None):
        g = smoothed_gradient(gradient, weights, noise, draws=noise_samples, step=t, delta=delta)
        for name, d in delta.items():
            # δ ← (1 − γ/ρ)·δ − γ·g                                   (Algorithm 1, line 5)
            d.mul_(1 - step_size / rho).sub_(g.pop(name), alpha=step_size)
        if prox is not None:
            # δ ← GST_γη(δ)                                           (Algorithm 1, line 7)
            delta = prox(delta)
        if total is not None and t >= steps - average_last:
            for name, d in delta.items():
                total[name] += d
    if total is not None:
        delta = {name: d / min(average_last, steps) for name, d in total.items()}
    return {name: d.div_(-rho) for name, d in delta.items()}


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


def shrink(norm: Tensor, alpha: Tensor | float) -> Tensor:
    """Factor max(0, 1 − α/‖v_S‖₂) of the group soft threshold, per group.

    GST_α(v)_S = 0 if ‖v_S‖₂ ≤ α, else (1 − α/‖v_S‖₂)·v_S, which shrinks the norm of each group by α.

    Args:
        norm: ‖v_S‖₂ per group.
        alpha: α ≥ 0.
    """
    return torch.where(norm > alpha, 1 - alpha / norm.clamp_min(torch.finfo(norm.dtype).tiny), torch.zeros_like(norm))


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
        for share, gradients in self.per_batch(weights, at):
            for name in list(gradients):
                part = gradients.pop(name).float() * share
                total[name] = total[name].add_(part) if name in total else part
        return total

    def per_batch(self, weights: Mapping[str, Tensor], at: str) -> Iterator[tuple[float, Tensors]]:
        """Yields for each batch its share of the windows and the gradient of its mean loss, in the weights' dtype."""
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        for batch in self.batches:
            ids = batch.to(self.model.device)
            with torch.enable_grad():
                # mean over windows and targets of −log p(x_{t+1} | x_≤t)                  (Eq. 1)
                kwargs = {"input_ids": ids, "labels": ids, "use_cache": False}
                loss = torch.func.functional_call(self.model, leaves, kwargs=kwargs).loss
            if not torch.isfinite(loss):
                where = _first_non_finite(self.model, leaves, kwargs)
                raise NonFiniteError(f"{at}: the loss is {loss.item()}; {where}")
            gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            for name, g in gradients.items():
                if not torch.isfinite(g).all():
                    raise NonFiniteError(
                        f"{at}: the gradient of {name} is not finite; load the model in bfloat16 or float32"
                    )
            yield len(batch) / self.windows, gradients


def _first_non_finite(model: nn.Module, weights: Tensors, kwargs: dict[str, Any]) -> str:
    """Says in which module a NaN or infinity appears first, by one more forward pass."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(first, Tensor) and not torch.isfinite(first).all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            torch.func.functional_call(model, weights, kwargs=kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "every layer's output is finite, the loss itself overflows; load the model in bfloat16 or float32"
    return f"{found[0]} is the first with a non-finite output; check its weights, or load the model in another dtype"


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter requires a gradient; afterwards everything is as it was, also on an error."""
    training = {module: module.training for module in model.modules()}
    requires = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        for parameter in requires:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in requires.items():
            parameter.requires_grad_(flag)
