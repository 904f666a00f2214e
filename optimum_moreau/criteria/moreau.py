"""MoreauPruner and MoreauPruner-GS: |∇g^ρ(w) ⊙ w| (paper, Eq. 9 and 11; Algorithm 1 as written).

MoreauPruner-GS soft-thresholds δ per channel after each step, by γη with the paper's absolute η. At the paper's
η = 5e-6 that threshold is inert: γη = 1e-9 lies orders of magnitude below ‖δ_S‖₂, and the kept units equal those of
`moreau`. `eta_quantile` gives the threshold a scale instead: that quantile of the group norms of the step. It is taken
per matrix for `channel_group="row"`, per layer for `channel_group="unit"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import MoreauPrunerConfig
from ..envelope import Prox, Tensors, moreau_gradient, shrink
from ..units import Block
from .criterion import Cost, Criterion, ElementScores, Scoring
from .released import released_gradient

PAPER = "https://arxiv.org/abs/2406.07017"


def score(run: Scoring) -> ElementScores:
    """Yields |δ/ρ ⊙ w| after T steps of Algorithm 1."""
    c = run.config
    assert c.rho is not None and c.step_size is not None and c.steps is not None  # resolved
    if c.released:
        return run.saliency(released_gradient(run))
    gradient = moreau_gradient(
        run.loss_gradient(),
        run.weights(),
        rho=c.rho,
        step_size=c.step_size,
        steps=c.steps,
        noise=run.noise(),
        noise_samples=c.noise_samples or 1,
        average_last=c.average_last or 1,
        prox=_prox(run),
    )
    return run.saliency(gradient)


def _prox(run: Scoring) -> Prox | None:
    """The group soft threshold the config asks for, or none."""
    c = run.config
    if c.eta is None and c.eta_quantile is None:
        return None

    def threshold(norms: Tensor) -> Tensor | float:
        if c.eta is not None and c.step_size is not None:
            return c.step_size * c.eta  # α = γη
        return torch.quantile(norms, c.eta_quantile or 0.0)

    if c.channel_group == "row":
        return lambda delta: {
            name: d * shrink(n := d.norm(dim=1, keepdim=True), threshold(n)) for name, d in delta.items()
        }
    return lambda delta: _shrink_units(delta, run.blocks, threshold)


def _shrink_units(delta: Tensors, blocks: tuple[Block, ...], threshold: Callable[[Tensor], Tensor | float]) -> Tensors:
    """Soft-thresholds whole units: the group is a unit's part of all the matrices it spans."""
    norms = {block: _unit_norms(delta, block) for block in blocks}  # (units,) each
    thresholds = {
        layer: threshold(torch.cat([norms[block] for block in blocks if block.layer == layer]))
        for layer in {block.layer for block in blocks}
    }
    shrunk = dict(delta)
    for block in blocks:
        factor = shrink(norms[block], thresholds[block.layer])
        for cut, name in block.weight_names().items():
            shrunk[name] = shrunk[name] * block.spread(cut, factor.float(), shrunk[name])
    return shrunk


def _unit_norms(delta: Tensors, block: Block) -> Tensor:
    """‖δ_S‖₂ per unit over all matrices it spans, float64 `(units,)` on CPU."""
    squares = [block.sum_per_unit(cut, delta[name].square()).cpu() for cut, name in block.weight_names().items()]
    return torch.stack(squares).sum(dim=0).sqrt()


def _cost(config: MoreauPrunerConfig) -> Cost:
    draws = config.noise_samples or 1
    floats = 1 + (draws > 1) + ((config.average_last or 1) > 1)  # δ, the mean over draws, the sum of the last iterates
    return Cost(passes=(config.steps or 0) * draws, floats=floats, copies=1, noisy=True)


_DEFAULTS: dict[str, Any] = {"sigma": 0.05, "steps": 10, "noise_samples": 1, "average_last": 1}

MOREAU = Criterion(
    name="moreau",
    summary="gradient of the Moreau envelope, Σ|∇g^ρ(w)⊙w|",
    paper=PAPER,
    score=score,
    needs=("gradients",),
    defaults={"rho": 0.05, "step_size": 1e-3, **_DEFAULTS},
    cost=_cost,
)
MOREAU_GS = Criterion(
    name="moreau-gs",
    summary="gradient of the Moreau envelope, group-sparse per channel",
    paper=PAPER,
    score=score,
    needs=("gradients",),
    defaults={"rho": 0.2, "step_size": 2e-4, "eta": None, "eta_quantile": 0.1, **_DEFAULTS},
    cost=_cost,
)
