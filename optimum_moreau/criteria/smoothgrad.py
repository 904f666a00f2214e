"""SmoothGrad: first-order Taylor averaged over noisy passes (MoreauPruner, Section 5.1 and appendix E.2)."""

from __future__ import annotations

import torch
from tqdm import tqdm

from ..config import MoreauPrunerConfig
from .criterion import Cost, Criterion, ElementScores, Scoring


def score(run: Scoring) -> ElementScores:
    """Yields E_z |∇f(w + z) ⊙ w|: importances, not gradients, are averaged over the passes."""
    c = run.config
    assert c.passes is not None  # resolved
    weights = run.weights()
    gradient = run.loss_gradient()
    mean = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    for i in tqdm(range(c.passes), desc="noisy passes", leave=False, disable=None):
        g = gradient(run.noise().added(weights, None, 0, i), at=f"pass {i + 1}")
        for name, w in weights.items():
            mean[name].add_(g.pop(name).mul_(w.detach().float()).abs_(), alpha=1 / c.passes)
    return run.by_block(lambda name, w: mean[name])


def _cost(config: MoreauPrunerConfig) -> Cost:
    return Cost(passes=config.passes or 0, floats=1, copies=1, noisy=True)


SMOOTHGRAD = Criterion(
    name="smoothgrad",
    summary="|g(w+z)⊙w| averaged over noisy passes",
    paper="https://arxiv.org/abs/2406.07017",
    score=score,
    needs=("gradients",),
    defaults={"sigma": 0.05, "passes": 100},
    cost=_cost,
)
