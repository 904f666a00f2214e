"""Random scores: the floor that every criterion must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.settings import settings
from ..distributed import generator
from .criterion import Criterion
from .papers import LLM_PRUNER

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.stream import Inputs
    from .scoring_run import Scoring


@settings
class Random(Criterion):
    """Uniform scores in [0, 1), the same on every device: one number per unit, from (seed, block).

    A unit's elements share its number, and a unit's score sums them; independent elements would sum to nearly the
    same score for every unit.
    """

    name = "random"
    summary = "uniform random scores, seeded"
    paper = LLM_PRUNER
    by_layer = True

    def score(self, run: Scoring) -> None:
        """Emits one number per unit."""
        import torch

        numbers = {block.where: _uniform((block.total,), run.config.seed, block.where) for block in run.blocks}

        def element(name: str, w: Tensor) -> Tensor:
            scores = torch.ones_like(w)
            for block in run.blocks:
                for cut, weight in block.weight_names().items():
                    if weight == name:
                        scores *= block.spread(cut, numbers[block.where], w)
            return scores

        run.by_weight(element)

    def elements(self, name: str, w: Tensor, inputs: Inputs, seed: int) -> Tensor:
        """For masks: one number per weight, from (seed, name)."""
        return _uniform(tuple(w.shape), seed, name).to(w.device)


def _uniform(shape: tuple[int, ...], seed: int, where: str) -> Tensor:
    import torch

    return torch.rand(shape, generator=generator(seed, where), dtype=torch.float32, device="cpu")
