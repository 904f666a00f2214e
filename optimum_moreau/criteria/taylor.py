"""Taylor expansion of the loss when a weight is set to zero, as in LLM-Pruner (Section 3.2; MoreauPruner, Eq. 3).

first    Σ|W ⊙ g|                 g = ∇ of the mean loss
second   Σ|W² ⊙ h|                h = mean_n g_n², the diagonal Fisher estimate of the Hessian, g_n of one sample
mixed    Σ|W ⊙ g − ½ W² ⊙ h|
vector   |Σ W ⊙ g|                the sign is kept inside each matrix of a unit

With `reduction="importance"` it is the mean over samples of what each would give alone:

first    mean_n Σ|W ⊙ g_n|
mixed    mean_n Σ|W ⊙ g_n − ½ W² ⊙ g_n²|
vector   mean_n |Σ W ⊙ g_n|       the absolute value of every sample's sum (of its elements, in a mask)

`second` is such a mean in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config.settings import settings
from ..distributed import add_up
from .criterion import Cost, OfGradients
from .papers import LLM_PRUNER

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import MoreauPrunerConfig
    from .scoring_run import Scoring


@settings
class Taylor(OfGradients):
    """First order."""

    name = "taylor"
    summary = "first-order Taylor, Σ|W⊙g| (LLM-Pruner)"
    paper = LLM_PRUNER

    def score(self, run: Scoring) -> None:
        """Emits |W ⊙ g|, or |W ⊙ g_n| / N of every sample n."""
        for part in run.parts():
            run.gradient(part, run.emit_saliency)

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """One pass; several batches are summed up."""
        return self.cost_of(1, config)


@settings
class TaylorVector(Taylor):
    """First order, with the sign kept inside each matrix of a unit."""

    name = "taylor-vector"
    summary = "first order with signs, |ΣW⊙g|"
    signed = True

    def score(self, run: Scoring) -> None:
        """Emits W ⊙ g with its sign, or W ⊙ g_n / N of every sample n."""
        for part in run.parts():
            run.gradient(part, lambda name, g, scale: run.emit(name, (g.float() * run.engine.weight(name)).mul_(scale)))


@settings
class TaylorSecond(OfGradients):
    """Second order, by the diagonal Fisher estimate; a mean over samples in either reduction."""

    name = "taylor-second"
    summary = "second-order Taylor, Σ|W²⊙h|"
    paper = LLM_PRUNER

    def score(self, run: Scoring) -> None:
        """Emits |W² ⊙ g_n²| / N of every sample n: their sum is |W² ⊙ h|."""

        def squared(name: str, g_n: Tensor) -> None:
            run.emit(name, g_n.mul_(run.engine.weight(name)).square_().div_(run.windows))

        sample_gradients(run, squared)

    def partial(self) -> bool:
        """Each process has its own samples."""
        return True

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """One window at a time."""
        return Cost(passes=1, batch=1)


@settings
class TaylorMixed(OfGradients):
    """Both orders, which need g and h of all samples at once: two float32 numbers per weight."""

    name = "taylor-mixed"
    summary = "both orders, Σ|W⊙g − ½W²⊙h|"
    paper = LLM_PRUNER

    def score(self, run: Scoring) -> None:
        """Emits |W ⊙ g − ½ W² ⊙ h|, or |W ⊙ g_n − ½ W² ⊙ g_n²| / N of every sample n, which keeps nothing."""

        def mixed(name: str, g_n: Tensor) -> None:
            first = g_n.mul_(run.engine.weight(name))  # W ⊙ g_n
            run.emit(name, (first - 0.5 * first.square()).abs_().div_(run.windows))

        if self.per_sample:
            sample_gradients(run, mixed)
            return
        g: dict[str, Tensor] = {}
        h: dict[str, Tensor] = {}

        def gather(name: str, g_n: Tensor) -> None:
            g[name] = g[name].add_(g_n, alpha=1 / run.windows) if name in g else g_n / run.windows
            squares = g_n.square_().div_(run.windows)
            h[name] = h[name].add_(squares) if name in h else squares

        sample_gradients(run, gather)
        add_up(*(one[name] for name in run.names for one in (g, h)))
        run.by_weight(lambda name, w: (w * g.pop(name) - 0.5 * w.square() * h.pop(name)).abs_())

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """One window at a time."""
        return Cost(passes=1, floats=0 if self.per_sample else 2, batch=1)


def sample_gradients(run: Scoring, gather: Callable[[str, Tensor], None]) -> None:
    """Calls `gather` with g_n of every weight in scope, in float32 and free to be changed, sample by sample.

    With several processes each has its own samples.
    """
    from .scoring_run import Part

    def scaled(name: str, g_n: Tensor, scale: float) -> None:
        gather(name, g_n.float() * scale)  # fp32: squared gradients underflow in fp16

    for one in run.samples():
        run.gradient(Part([(one, 1.0)], 1.0, everywhere=False), scaled)
