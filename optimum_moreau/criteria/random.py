"""Random scores: the floor that every criterion must beat."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .criterion import Criterion, ElementScores, Scoring


def score(run: Scoring) -> ElementScores:
    """Yields uniform scores in [0, 1), the same on every device: one number per unit, from (seed, block).

    A unit's elements share its number, and a unit's score sums them; independent elements would sum to nearly the
    same score for every unit.
    """
    for block in run.blocks:
        digest = hashlib.sha256(f"{run.config.seed}/{block.where}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        unit = torch.rand(block.total, generator=generator)  # (units,)
        scores: dict[str, Tensor] = {}
        for cut, name in block.weight_names().items():
            weight = run.model.get_parameter(name)
            scores[name] = scores.get(name, 1) * block.spread(cut, unit, weight).expand(weight.shape)
        yield block, scores


RANDOM = Criterion(
    name="random",
    summary="uniform random scores, seeded",
    paper="https://arxiv.org/abs/2305.11627",
    score=score,
)
