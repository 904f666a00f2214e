"""The smoothed loss's gradient on whole dictionaries of tensors: what `released`, and the oracle of the tests, run on.

It holds several copies of the weights in scope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import NonFiniteError
from ..models.hooks import first_non_finite
from .engine import NOT_FINITE
from .noise import Noise

Tensors = dict[str, Tensor]
# ∇f in float32, by name, at the given weights; `at` says for messages where the computation stands.
Gradient = Callable[..., Tensors]


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
        moved = {
            name: noise.moved(w.contiguous(), None if delta is None else delta[name], name, step, i)
            for name, w in weights.items()
        }
        g = gradient(moved, at=f"step {step + 1}, draw {i + 1}")
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
                kwargs = {"input_ids": ids, "labels": ids, "use_cache": False}
                loss = torch.func.functional_call(self.model, leaves, kwargs=kwargs).loss
            if not torch.isfinite(loss):
                forward = partial(torch.func.functional_call, self.model, leaves, kwargs=kwargs)
                raise NonFiniteError(f"{at}: the loss is {loss.item()}; {first_non_finite(self.model, forward)}")
            gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            for name in leaves:
                g = gradients.pop(name)
                if not torch.isfinite(g).all():
                    raise NonFiniteError(f"{at}: the gradient of {name} {NOT_FINITE}")
                part = g.float() * (len(batch) / self.windows)
                total[name] = total[name].add_(part) if name in total else part
        return total
