"""GBLM-Pruner: weights by what flows through them and by how the loss feels them.

gblm            |W|·√A + α'·|W|·G           G = √(mean_n g_n²)      α' = α·√128
gblm-l1         |W|·√A + α'·|W|·G           G = mean_n |g_n|        α' = α·128
gblm-gradient, gblm-gradient-l1             |W|·G alone

g_n is the gradient of the loss on one sample, in either `reduction`. The published code takes norms over its 128
samples where this takes means, so that α does not depend on their number; α' is scaled so that with α = 100 the two
weigh G alike at n = 128.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from ..config.settings import setting, settings
from ..distributed import add_up
from .criterion import Cost, OfGradients
from .papers import GBLM_PAPER
from .ria import norms
from .taylor import sample_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import MoreauPrunerConfig
    from .scoring_run import Scoring

_PUBLISHED_SAMPLES = 128


@settings
class GBLMGradient(OfGradients):
    """|W|·G alone, G the ℓ2 norm over samples; one float32 number is held for every weight in scope meanwhile."""

    name = "gblm-gradient"
    summary = "|W|·G, ℓ2, without activations"
    paper = GBLM_PAPER
    squared: ClassVar[bool] = True

    def score(self, run: Scoring) -> None:
        """Emits |W|·G."""
        g_of = self._gathered(run)
        run.by_weight(lambda name, w: w.abs() * g_of(name))

    def partial(self) -> bool:
        """G is of all processes."""
        return False

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """One window at a time."""
        return Cost(passes=1, floats=1, batch=1)

    def _gathered(self, run: Scoring) -> Callable[[str], Tensor]:
        gathered: dict[str, Tensor] = {}  # Σ_n g_n² / N, or Σ_n |g_n| / N

        def gather(name: str, g: Tensor) -> None:
            part = (g.square_() if self.squared else g.abs_()).div_(run.windows)
            gathered[name] = gathered[name].add_(part) if name in gathered else part

        sample_gradients(run, gather)
        add_up(*gathered.values())
        return lambda name: gathered[name].sqrt() if self.squared else gathered[name]


@settings
class GBLMGradientL1(GBLMGradient):
    """|W|·G alone, G the ℓ1 norm."""

    name = "gblm-gradient-l1"
    summary = "|W|·G, ℓ1, without activations"
    squared = False


@settings
class GBLM(GBLMGradient):
    """|W|·√A + α|W|·G, G the ℓ2 norm."""

    name = "gblm"
    summary = "|W|·√A + α|W|·G, G the ℓ2 norm over samples"
    needs = ("gradients", "activations")

    alpha: float = setting("α: how much the gradient weighs beside the activations", default=100.0, ge=0)

    def score(self, run: Scoring) -> None:
        """Emits |W|·(√A + α'·G)."""
        g_of = self._gathered(run)
        alpha = self.alpha * (_PUBLISHED_SAMPLES**0.5 if self.squared else _PUBLISHED_SAMPLES)
        run.by_inputs(("squares",), lambda name, w, x: w.abs() * (norms(x.squares) + alpha * g_of(name)))


@settings
class GBLML1(GBLM):
    """|W|·√A + α|W|·G, G the ℓ1 norm."""

    name = "gblm-l1"
    summary = "the same, G the ℓ1 norm"
    squared = False
