"""Random scores: the floor that every criterion must beat."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..config import MoreauPrunerConfig
from ..models.stream import Inputs
from ..models.units import Block
from .criterion import Criterion, Scoring
from .papers import LLM_PRUNER


def score(run: Scoring) -> None:
    """Emits uniform scores in [0, 1), the same on every device: one number per unit, from (seed, block).

    A unit's elements share its number, and a unit's score sums them; independent elements would sum to nearly the
    same score for every unit.
    """
    numbers = {block.where: _uniform(block, run.config.seed) for block in run.blocks}

    def element(name: str, w: Tensor) -> Tensor:
        scores = torch.ones_like(w)
        for block in run.blocks:
            for cut, weight in block.weight_names().items():
                if weight == name:
                    scores *= block.spread(cut, numbers[block.where], w)
        return scores

    run.by_weight(element)


def elements(name: str, w: Tensor, inputs: Inputs, config: MoreauPrunerConfig) -> Tensor:
    """For masks: one number per weight, from (seed, name)."""
    return torch.rand(w.shape, generator=_generator(config.seed, name), dtype=torch.float32, device="cpu").to(w.device)


def _uniform(block: Block, seed: int) -> Tensor:
    """One number per unit, float32 `(units,)`."""
    return torch.rand(block.total, generator=_generator(seed, block.where), dtype=torch.float32, device="cpu")


def _generator(seed: int, where: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{where}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))


RANDOM = Criterion(
    name="random",
    summary="uniform random scores, seeded",
    paper=LLM_PRUNER,
    score=score,
    elements=elements,
)
