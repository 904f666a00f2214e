"""What a search measures of a model that gives something up: by how much it differs from the dense model.

Of a token, p is the dense model's distribution of the next one and q that of the model at hand:

    KL(p ‖ q) = Σ_{k ∈ top} p_k·log(p_k/q_k) + r_p·log(r_p/r_q),        r = 1 − Σ_{k ∈ top} of each

top are the 64 likeliest tokens of p, and all others are one bucket r, so that what is kept of the dense model is small;
the KL divergence over all tokens is never less. With the next-token loss instead: loss(q) − loss(p).

What all windows begin with, the tokenizer's own prefix of a text, is context and no target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..distributed import add_up, is_distributed
from ..errors import NonFiniteError

TOP = 64  # of the dense model's tokens, by likelihood
_LEAST = 1e-12  # of what all other tokens have

Kind = Literal["kl", "loss"]
# Of one window: the likeliest tokens `(targets, top)` and log p of these and of the rest, `(targets, top + 1)`; or the
# targets alone.
_Kept = tuple[Tensor, Tensor]


class Objective:
    """Measures logits against those of the dense model, on windows of this process; all processes add up.

    Args:
        kind: `kl` or `loss`.
        batches: token ids, each `(windows, length)`.
        prefix: tokens at the start of each that are context.

    Attributes:
        first: the first target of each.
    """

    def __init__(self, kind: Kind, batches: Sequence[Tensor], prefix: int = 0):
        self.kind: Kind = kind
        self.batches = batches
        self.first = max(prefix, 1)
        self._kept: list[_Kept] = []
        self._dense = 0.0

    def remember(self, logits: Iterable[Tensor]) -> None:
        """Keeps what is needed of the dense model's logits `(windows, length, vocabulary)`, batch by batch."""
        self._kept = []
        for batch, whole in zip(self.batches, logits, strict=True):
            for ids, scores in zip(batch, whole, strict=True):
                self._kept.append(self._of_dense(ids, scores[self.first - 1 : -1].float()))
            del whole, scores  # not beside the next batch's
        self._dense = 0.0
        if self.kind == "loss":
            self._dense = self._mean([self._growth(kept, *kept) for kept in self._kept], "the model as it is")

    def of(self, logits: Iterable[Tensor], what: str) -> float:
        """The mean over all targets of all processes, in nats; 0 for the dense model.

        Args:
            logits: batch by batch.
            what: is measured, for messages.

        Raises:
            NonFiniteError: it is NaN or infinite.
        """
        found, kept = [], iter(self._kept)
        for whole in logits:
            for scores in whole:  # one window in float32 at a time
                mine = next(kept)
                found.append(self._growth(mine, *self._of(mine[0], scores[self.first - 1 : -1].float())))
            del whole, scores  # not beside the next batch's
        return self._mean(found, what) - self._dense

    def growth(self, windows: Iterable[int], logits: Tensor) -> Tensor:
        """The sum over the targets of some windows, with its graph, of their logits `(windows, length, vocabulary)`."""
        kept = (self._kept[window] for window in windows)
        parts = [
            self._summed(mine, self._of(mine[0], scores[self.first - 1 : -1].float())[1])
            for mine, scores in zip(kept, logits, strict=True)
        ]
        return torch.stack(parts).sum()

    def _of_dense(self, ids: Tensor, scores: Tensor) -> _Kept:
        if self.kind == "loss":
            return self._of(ids[self.first :, None].to(scores.device), scores)
        return self._of(scores.topk(min(TOP, scores.shape[1]), dim=1).indices, scores)

    def _of(self, tokens: Tensor, scores: Tensor) -> _Kept:
        """The log-likelihoods of some tokens of each target, and of all others together."""
        chosen = scores.gather(1, tokens).double() - scores.logsumexp(1, keepdim=True).double()
        rest = (1 - chosen.exp().sum(1, keepdim=True)).clamp(min=_LEAST).log()
        return tokens, torch.cat([chosen, rest], dim=1)

    def _growth(self, dense: _Kept, tokens: Tensor, log_q: Tensor) -> tuple[float, int]:
        return self._summed(dense, log_q).item(), len(log_q)

    def _summed(self, dense: _Kept, log_q: Tensor) -> Tensor:
        if self.kind == "loss":
            return -log_q[:, 0].sum()
        log_p = dense[1]
        return (log_p.exp() * (log_p - log_q)).sum()

    def _mean(self, found: Sequence[tuple[float, int]], what: str) -> float:
        total = torch.tensor(found, dtype=torch.float64, device="cpu").sum(0)
        if is_distributed():
            total = total.to(self._kept[0][1].device)
            add_up(total)
        mean = float(total[0] / total[1])
        if not math.isfinite(mean):
            raise NonFiniteError(f"search: the loss of {what} is {mean}; check the model's weights")
        return mean
