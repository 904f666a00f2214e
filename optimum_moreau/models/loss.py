"""The next-token loss of a model on windows of token ids, as its parts are measured and guarded by."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import add_up, is_distributed, share
from ..errors import NonFiniteError
from .placement import input_device, prepare_offloaded
from .undisturbed import plain_outputs


def prefix_length(tokens: Tensor) -> int:
    """How many tokens all windows `(windows, length)` begin with; 0 for a single window."""
    if len(tokens) < 2:
        return 0
    same = (tokens == tokens[:1]).all(dim=0).long()
    shared = int(same.cumprod(0).sum())
    return shared if shared < tokens.shape[1] - 1 else 0


@torch.no_grad()
def mean_loss(model: Any, tokens: Tensor, batch_size: int, what: str = "the model") -> float:
    """The mean over all targets, in nats; every process measures its share.

    Args:
        model: a causal language model in eval mode.
        tokens: windows of all processes, `(windows, length)`; what all begin with, or else the first token of each, is
            context and no target.
        batch_size: windows per forward pass.
        what: is measured, for messages.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    device, first = input_device(model), max(prefix_length(tokens), 1)
    total = torch.zeros(2, dtype=torch.float64, device="cpu")  # loss, targets
    with plain_outputs(model):
        own = share(tokens)
        for batch in own.split(batch_size) if len(own) else ():  # of many processes some may have none
            logits = model(input_ids=batch.to(device), use_cache=False).logits
            for ids, scores in zip(batch, logits, strict=True):  # one window in float32 at a time
                targets = ids[first:].to(scores.device)
                loss = nn.functional.cross_entropy(scores[first - 1 : -1].float(), targets, reduction="sum")
                total += torch.tensor([loss.item(), len(targets)], dtype=torch.float64, device="cpu")
    if is_distributed():
        total = total.to(device)
        add_up(total)
    prepare_offloaded(model)  # accelerate's passes untie what is tied
    mean = float(total[0] / total[1])
    if not math.isfinite(mean):
        raise NonFiniteError(f"the loss of {what} is {mean}; check its weights, or load it in bfloat16 or float32")
    return mean
