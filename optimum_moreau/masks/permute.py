"""Channel permutation: an order of a matrix's inputs for which its n:m mask keeps more score (RIA).

Only channels inside a layer move: those of the MLP, and those of the values inside each head. The rows that write them
move along, so the network's function stays, and nothing is left to do at run time. With s_c the scores of input c, an
order of the inputs in groups of m keeps

    R = Σ_rows Σ_groups (the n largest of the group's m scores)

Inputs are sorted by their Σ_rows s and dealt out, so that every group gets inputs of all ranks. Then, for each of the m
places in turn, the inputs at that place are taken out of all groups and assigned anew. In every row, group g keeps the
n − 1 largest of the m − 1 scores it has left, whatever comes; with T_g their n-th largest, input c in group g adds

    Σ_rows max(s_c, T_g) = ½·(Σ_rows s_c + Σ_rows T_g + ‖s_c − T_g‖₁)

The sums are the same for every assignment, so the best is the linear-sum assignment of the largest ‖s_c − T_g‖₁. More
than 512 groups are assigned in blocks of at most so many, dealt so that blocks are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .patterns import Pattern, keep_mask

GROUPS = 512  # in a block: the assignment takes the cube of them in time, and memory for m scores of each per row


@dataclass(frozen=True)
class Order:
    """In which order channels are put.

    Attributes:
        columns: of the matrix that reads them, int64 `(in,)`: where each column comes from.
        rows: the same of the matrices that write them, `(channels,)`.
        before: share of the score that the n:m mask keeps in the old order.
        after: and in this one; never less.
    """

    columns: Tensor
    rows: Tensor
    before: float
    after: float


def order_channels(scores: Tensor, pattern: Pattern, heads: int = 1, readers: int = 1) -> Order:
    """Returns the order of the channels that a matrix reads; where a head's width is no multiple of m, the old one.

    Args:
        scores: of the matrix, `(out, heads · readers · width)`, none negative.
        pattern: n:m.
        heads: that channels stay in: KV heads; 1 for an MLP.
        readers: query heads per KV head, which follow each other and read the same channels, so have one order.
    """
    width = scores.shape[1] // (heads * readers)
    places = torch.arange(width, dtype=torch.int64, device=scores.device).repeat(heads, 1)  # (heads, width)
    if width % pattern.of == 0:
        for places_of_head, part in zip(places, scores.view(len(scores), heads, -1).unbind(dim=1), strict=True):
            own = part.reshape(-1, width)  # (out · readers, width)
            found = _assigned(own, _dealt(own, pattern.of), pattern).flatten()
            if _kept(own[:, found], pattern) > _kept(own, pattern):
                places_of_head.copy_(found)
    starts = width * torch.arange(heads * readers, dtype=torch.int64, device=scores.device)
    columns = (places[:, None] + starts.view(heads, readers, 1)).flatten()
    rows = (places + starts[:heads, None]).flatten()
    total = float(scores.sum(dtype=torch.float64)) or 1.0
    return Order(columns, rows, _kept(scores, pattern) / total, _kept(scores[:, columns], pattern) / total)


def _dealt(scores: Tensor, of: int) -> Tensor:
    """Inputs by their score sum, dealt out to the groups: int64 `(groups, m)`."""
    return scores.sum(dim=0).argsort(descending=True, stable=True).view(of, -1).T.contiguous()


def _assigned(scores: Tensor, groups: Tensor, pattern: Pattern) -> Tensor:
    """The groups after one assignment of each place."""
    from scipy.optimize import linear_sum_assignment  # here: importing it takes as long as a small model's mask

    groups = groups.clone()
    blocks = math.ceil(len(groups) / GROUPS)
    for block in range(blocks):
        own = groups[block::blocks]  # a view: what is assigned is written
        for place in range(pattern.of):
            others = torch.cat([own[:, :place], own[:, place + 1 :]], dim=1)
            left = scores[:, others.flatten()].view(len(scores), *others.shape)  # (rows, groups, m − 1)
            threshold = left.topk(pattern.kept, dim=2).values[:, :, -1]  # (rows, groups), T
            taken = own[:, place].clone()
            gain = torch.cdist(scores[:, taken].T, threshold.T, p=1)  # (inputs, groups), ‖s_c − T_g‖₁
            _, group = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
            own[torch.from_numpy(group).to(own.device), place] = taken
    return groups


def _kept(scores: Tensor, pattern: Pattern) -> float:
    """R."""
    return float(torch.where(keep_mask(scores, pattern, 0.0), scores, 0).sum(dtype=torch.float64))
