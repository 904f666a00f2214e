"""What a criterion is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import MoreauPrunerConfig
from ..envelope import LossGradient, Noise
from ..units import Block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..envelope import Tensors

# One block's scores: for each of its parameter names, a float32 tensor of the weight's shape `(out, in)`.
ElementScores = Iterator[tuple[Block, dict[str, Tensor]]]


@dataclass(frozen=True)
class Scoring:
    """One scoring run: a model in `scoring_mode`, the blocks in scope, the calibration windows, a resolved config."""

    model: PreTrainedModel
    blocks: tuple[Block, ...]
    batches: list[Tensor]
    config: MoreauPrunerConfig

    def weights(self) -> dict[str, Tensor]:
        """The weights in scope by name, the model's own tensors, `(out, in)` in the model's dtype."""
        names = (name for block in self.blocks for name in block.weight_names().values())
        return {name: self.model.get_parameter(name) for name in names}

    def noise(self) -> Noise:
        """The smoothing noise that the config asks for."""
        c = self.config
        assert c.sigma is not None  # resolved
        return Noise(c.sigma, relative=c.noise == "relative", seed=c.seed)

    def loss_gradient(self) -> LossGradient:
        """The gradient of the calibration loss as a function of weights."""
        return LossGradient(self.model, self.batches)

    def by_block(self, score: Callable[[str, Tensor], Tensor]) -> ElementScores:
        """Yields block by block `score(name, weight)` of each of its weights; w comes in float32."""
        for block in self.blocks:
            names = block.weight_names().values()
            yield block, {name: score(name, self.model.get_parameter(name).detach().float()) for name in names}

    def saliency(self, gradient: Tensors) -> ElementScores:
        """Yields |g ⊙ w| (paper, Eq. 3); in float32, since the product underflows in float16."""
        return self.by_block(lambda name, w: gradient[name].to(torch.float32).mul(w).abs_())


@dataclass(frozen=True)
class Cost:
    """What a scoring run takes, for estimates made before it.

    Attributes:
        passes: forward and backward passes over the calibration text.
        floats: float32 numbers held per weight in scope while a pass runs.
        copies: numbers in the model's dtype held per weight in scope while a pass runs.
        noisy: every pass draws noise for every weight in scope.
        batch: windows that pass at once; `None`: the config's.
    """

    passes: int = 0
    floats: float = 0
    copies: float = 0
    noisy: bool = False
    batch: int | None = None


@dataclass(frozen=True)
class Criterion:
    """How a weight is scored.

    Attributes:
        name: its name in the registry.
        summary: one line for lists and cards.
        paper: link to the source.
        score: yields the element scores of one run.
        needs: `gradients`, or nothing.
        defaults: the criterion's own config fields with their defaults; `None` stands for "off".
        signed: elements carry a sign, so that the absolute value is taken of their sum.
        cost: of a run with a resolved config.
    """

    name: str
    summary: str
    paper: str
    score: Callable[[Scoring], ElementScores]
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    signed: bool = False
    cost: Callable[[MoreauPrunerConfig], Cost] = lambda config: Cost()
