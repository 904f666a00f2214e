"""What blocks cost, alone and together, to second order: of one pass forward and one backward.

Of a token s, a_b,n is how its log-likelihood would change, to first order, with n units of block b gone:

    a_b,n(s) = g_b(s)ᵀ·(V_b,n − W_b)·x_b(s)          g_b = ∂ Σ_t log p(y_t) / ∂ (W_b·x_b),   y_t ~ p, drawn

    KL(p ‖ q) ≈ ½·E_s [(Σ_b a_b,n_b(s))²]            Δ_b(n) ≈ ½·E_s [a_b,n(s)²]

since the second derivative of the divergence is the Fisher information (Martens, https://arxiv.org/abs/1412.1193). What
different tokens have in common is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..distributed import add_up, generator
from ..errors import NonFiniteError
from ..models.placement import input_device, loaded
from ..models.progress import progress
from ..models.undisturbed import plain_outputs
from ..models.units import Block
from .supernet import Supernet

_WINDOWS = 2  # at once, through the backward pass


def fisher(
    model: Any,
    net: Supernet,
    levels: Mapping[Block, Sequence[int]],
    batches: Sequence[Tensor],
    *,
    seed: int,
    first: int = 1,
) -> Tensor:
    """Measures ½·E_s [a·aᵀ], over all blocks and their levels in order: float64 `(levels, levels)` on CPU.

    Args:
        model: a causal language model in `scoring_mode`; its weights get no gradients.
        net: makes V.
        levels: n of each block.
        batches: token ids of this process.
        seed: of the labels that are drawn.
        first: target of each window.

    Raises:
        NonFiniteError: a gradient is NaN or infinite.
    """
    places = _places(levels)
    size = sum(map(len, levels.values()))
    found = torch.zeros(size, size, dtype=torch.float64, device=input_device(model))
    tokens = torch.zeros(1, dtype=torch.float64, device=found.device)
    windows = torch.cat(list(batches))
    for number, ids in enumerate(progress(windows.split(_WINDOWS), "sensitivity, windows")):
        a = torch.zeros(ids.numel(), size, dtype=torch.float64, device=found.device)
        with ExitStack() as stack:
            for block, place in places.items():
                note = partial(_note, net, block, levels[block], a[:, place : place + len(levels[block])])
                stack.callback(net.reader(block).register_forward_hook(note).remove)
            _backward(model, ids, generator(seed, f"sensitivity/{number}"), first)
        found += a.T @ a
        tokens += ids.shape[0] * (ids.shape[1] - first)
    add_up(found, tokens)
    if not torch.isfinite(found).all():
        raise NonFiniteError("budget 'sensitivity': a gradient is not finite; check the model's weights")
    return (found / (2 * tokens)).cpu()


def _places(levels: Mapping[Block, Sequence[int]]) -> dict[Block, int]:
    """Where the levels of each block begin."""
    found, place = {}, 0
    for block, own in levels.items():
        found[block], place = place, place + len(own)
    return found


def _backward(model: Any, ids: Tensor, draw: torch.Generator, first: int) -> None:
    """One pass forward, and one back to the embeddings: hooks on the way see the gradients."""
    begun: list[Tensor] = []

    def begin(module: Any, args: Any, output: Tensor) -> Tensor:
        begun.append(output.detach().requires_grad_())
        return begun[-1]

    watch = model.get_input_embeddings().register_forward_hook(begin)
    try:
        with torch.enable_grad(), plain_outputs(model):
            logits = model(input_ids=ids.to(input_device(model)), use_cache=False).logits[:, first - 1 : -1]
            likely = logits.float().log_softmax(-1).flatten(0, 1)  # (targets, vocabulary)
            drawn = torch.multinomial(likely.detach().exp().cpu(), 1, generator=draw).to(likely.device)
            torch.autograd.grad(likely.gather(1, drawn).sum(), begun)
    finally:
        watch.remove()


def _note(
    net: Supernet, block: Block, counts: Sequence[int], into: Tensor, module: Any, args: Any, out: Tensor
) -> None:
    """Once the gradient of what a matrix gives is known, notes a of its levels, `(tokens, levels)`."""
    x = args[0].detach().flatten(0, -2)

    def note(gradient: Tensor) -> None:
        g, w = gradient.flatten(0, -2), loaded(module, "weight")
        for column, count in enumerate(counts):
            step = net.matrix(block, count, keep=True).to(w.device) - w
            into[:, column] = ((g @ step) * x).sum(1, dtype=torch.float64).to(into.device)

    out.register_hook(note)
