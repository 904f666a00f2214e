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

from torch import Tensor

from ..config import MoreauPrunerConfig
from ..models.stream import Inputs
from .criterion import Cost, Criterion, Scoring
from .papers import GBLM_PAPER
from .taylor import sample_gradients
from .wanda import norms

_PUBLISHED_SAMPLES = 128


def _score(*, squared: bool, activations: bool) -> Callable[[Scoring], None]:
    """Emits the score; one float32 number is held for every weight in scope meanwhile."""

    def score(run: Scoring) -> None:
        gathered: dict[str, Tensor] = {}  # Σ_n g_n² / N, or Σ_n |g_n| / N

        def gather(name: str, g: Tensor) -> None:
            part = (g.square_() if squared else g.abs_()).div_(run.windows)
            gathered[name] = gathered[name].add_(part) if name in gathered else part

        sample_gradients(run, gather)
        for total in gathered.values():
            run.engine.sum_over_processes(total)

        def g_of(name: str) -> Tensor:
            return gathered[name].sqrt() if squared else gathered[name]

        if not activations:
            run.by_weight(lambda name, w: w.abs() * g_of(name))
            return
        assert run.config.alpha is not None  # resolved
        alpha = run.config.alpha * (_PUBLISHED_SAMPLES**0.5 if squared else _PUBLISHED_SAMPLES)

        def elements(name: str, w: Tensor, inputs: Inputs, config: MoreauPrunerConfig) -> Tensor:
            return w.abs() * (norms(inputs.squares) + alpha * g_of(name))

        run.by_inputs(("squares",), elements)

    return score


def _criterion(name: str, summary: str, *, squared: bool, activations: bool) -> Criterion:
    return Criterion(
        name=name,
        summary=summary,
        paper=GBLM_PAPER,
        score=_score(squared=squared, activations=activations),
        needs=("gradients", "activations") if activations else ("gradients",),
        defaults={"alpha": 100.0} if activations else {},
        cost=lambda config: Cost(passes=1, floats=1, batch=1),
    )


GBLM = _criterion("gblm", "|W|·√A + α|W|·G, G the ℓ2 norm over samples", squared=True, activations=True)
GBLM_L1 = _criterion("gblm-l1", "the same, G the ℓ1 norm", squared=False, activations=True)
GBLM_GRADIENT = _criterion("gblm-gradient", "|W|·G, ℓ2, without activations", squared=True, activations=False)
GBLM_GRADIENT_L1 = _criterion("gblm-gradient-l1", "|W|·G, ℓ1, without activations", squared=False, activations=False)
