"""What steps of all blocks cost, to second order, of one pass forward and one or two backward.

A step takes the matrix of a block b from V, as it is now, to V'. Of a token s, with x what flows in and y_t ~ q drawn
from the model at hand:

    a_b(s) = g_b(s)ᵀ·(V' − V)·x_b(s)        g_b = ∂ Σ_t log q(y_t) / ∂ (V·x_b)
    l_b(s) the same with ∂ L, the gradient of what is measured (objective.py)

    L(V') − L(V) ≈ E_s [l_b(s)] + ½·E_s [a_b(s)²]

The second derivative of the KL divergence is the Fisher information (Martens, https://arxiv.org/abs/1412.1193); at the
dense model its first is zero. What different tokens have in common is left out of the second term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..distributed import add_up, generator, processes, rank
from ..errors import NonFiniteError
from ..models.placement import input_device
from ..models.progress import progress
from ..models.undisturbed import plain_outputs
from ..models.units import Block
from .extent import AT_ONCE
from .objective import Objective
from .supernet import Counts, Supernet


def second_order(
    model: Any,
    net: Supernet,
    steps: Mapping[Block, Sequence[int]],
    objective: Objective,
    *,
    now: Counts,
    seed: int,
    name: str,
) -> dict[Block, list[float]]:
    """Estimates by how much what is measured grows with each step, in nats per target.

    Args:
        model: a causal language model in `scoring_mode`, which computes with `now`; its weights get no gradients.
        net: makes V.
        steps: of each block, the numbers of units gone after them.
        objective: that remembers the dense model.
        now: units gone of each block, where any are.
        seed: of the labels that are drawn.
        name: for the progress, and beside the seed.

    Raises:
        NonFiniteError: a gradient is NaN or infinite.
    """
    sums = {block: torch.zeros(2, len(own), dtype=torch.float64, device="cpu") for block, own in steps.items()}
    slopes = objective.kind == "loss" or any(now.values())
    windows, at = torch.cat(list(objective.batches)).split(AT_ONCE), 0
    for ids in progress(windows, f"{name}, windows"):
        kind = [1]  # of the gradient that is on its way: 1 drawn labels', 0 the objective's

        def note(block: Block, seen: Tensor, sums: Any = sums, kind: Any = kind) -> None:
            sums[block][kind[0]] += (seen.square() if kind[0] else seen).sum(0).cpu()

        with ExitStack() as stack, torch.enable_grad(), plain_outputs(model):
            for block, own in steps.items():
                watch = partial(_watch, net, block, now.get(block, 0), own, partial(note, block))
                stack.callback(net.reader(block).register_forward_hook(watch).remove)
            begun: list[Tensor] = []
            stack.callback(model.get_input_embeddings().register_forward_hook(partial(_begin, begun)).remove)
            logits = model(input_ids=ids.to(input_device(model)), use_cache=False).logits
            likely = logits[:, objective.first - 1 : -1].float().log_softmax(-1)  # (windows, targets, vocabulary)
            places = range(rank() + at * processes(), rank() + (at + len(ids)) * processes(), processes())
            drawn = _drawn(likely.detach(), [generator(seed, f"{name}/{place}") for place in places])
            torch.autograd.grad(likely.gather(2, drawn).sum(), begun, retain_graph=slopes)
            if slopes:
                kind[0] = 0
                torch.autograd.grad(objective.growth(range(at, at + len(ids)), logits), begun)
        at += len(ids)
    return _means(sums, sum(ids.shape[0] * (ids.shape[1] - objective.first) for ids in windows), model)


def _drawn(likely: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
    """One label of each target of each window, by its log-probabilities; int64 `(windows, targets, 1)`."""
    one = (torch.multinomial(own.exp().cpu(), 1, generator=draw) for own, draw in zip(likely, draws, strict=True))
    return torch.stack(list(one)).to(likely.device)


def _means(sums: Mapping[Block, Tensor], targets: int, model: Any) -> dict[Block, list[float]]:
    """l + ½·a², of all processes."""
    device = input_device(model)
    count = torch.tensor([targets], dtype=torch.float64, device=device)
    whole = torch.cat([one.flatten() for one in sums.values()]).to(device)
    add_up(count, whole)
    if not torch.isfinite(whole).all():
        raise NonFiniteError("budget: a gradient is not finite; check the model's weights")
    parts = (whole / count).cpu().split([one.numel() for one in sums.values()])
    found = {}
    for block, part in zip(sums, parts, strict=True):
        slope, curvature = part.view(2, -1)
        found[block] = (slope + curvature / 2).tolist()
    return found


def _begin(begun: list[Tensor], module: Any, args: Any, output: Tensor) -> Tensor:
    """The embeddings are where gradients end."""
    begun.append(output.detach().requires_grad_())
    return begun[-1]


def _watch(
    net: Supernet,
    block: Block,
    now: int,
    counts: Sequence[int],
    note: Callable[[Tensor], None],
    module: Any,
    args: tuple[Any, ...],
    output: Tensor,
) -> None:
    """Once a gradient of what a matrix gives is known, notes what it says of each step, `(tokens, steps)`."""
    x = args[0].detach().flatten(0, -2)

    def told(gradient: Tensor) -> None:
        g, v = gradient.flatten(0, -2), net.matrix(block, now, keep=True)
        steps = ((net.matrix(block, count, keep=True) - v).to(g.device) for count in counts)
        seen = [((g @ step) * x).sum(1, dtype=torch.float64) for step in steps]
        if seen:
            note(torch.stack(seen, dim=1))

    output.register_hook(told)
