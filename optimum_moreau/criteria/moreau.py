"""MoreauPruner and MoreauPruner-GS: |∇g^ρ(w) ⊙ w| (paper, Eq. 9 and 11; Algorithm 1 as written).

MoreauPruner-GS soft-thresholds δ per channel after each step, by γη with the paper's absolute η. At the paper's
η = 5e-6 that threshold is inert: γη = 1e-9 lies orders of magnitude below ‖δ_S‖₂, and the kept units equal those of
`moreau`. `eta_quantile` gives the threshold a scale instead: that quantile of the group norms of the step. It is taken
per matrix for `channel_group="row"`, per layer for `channel_group="unit"`.

`relative_rho` gives ρ and γ a scale too, ρ_W = ρ̂·‖W‖_F/‖g_W‖_F of each matrix W and γ_W a fixed share of it
(envelope/moreau.py). The paper's T·γ/ρ of 0.2 and 0.01 leaves δ far from −ρ·g, and its absolute ρ moves a model's
weights by as much as its gradients happen to be large (docs/results.md, "Moreau's own scale").

With `reduction="importance"` Algorithm 1 runs on every sample alone, T steps each, and the importances are averaged:

    mean_n |δ_n/ρ_W ⊙ w|

δ_n starts at zero in the place of δ_(n−1), so that one δ is held. The noise of a step is the same for all samples, so a
sample's importance depends neither on the others nor on their order; a threshold is that of the sample's own δ_n, and a
relative ρ_W that of its own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..config import MoreauPrunerConfig
from ..envelope import MoreauRun, State, shrink
from ..files.temporary import temporary_folder
from ..models.units import Block
from .criterion import Cost, Criterion, Part, Scoring, batches_per_pass
from .papers import MOREAU_PRUNER
from .released import released_gradient

Threshold = Callable[[Tensor], Tensor | float]


def score(run: Scoring) -> None:
    """Emits |δ/ρ_W ⊙ w| after T steps of Algorithm 1, or |δ_n/ρ_W ⊙ w| / N of every sample n."""
    if run.config.released:
        for name, gradient in released_gradient(run).items():
            if name in run.names:
                run.emit_saliency(name, gradient)
        return
    with _state(run) as delta:
        for part in run.parts():
            if run.config.per_sample:
                delta.reset()
            _score_part(run, delta, part)


def _score_part(run: Scoring, delta: State, part: Part) -> None:
    """Runs the steps that are left of T on a part of the text, and emits its importance."""
    c = run.config
    relative = c.relative_rho is not None
    rho = c.relative_rho or c.rho
    step_size = rho * c.step_ratio if rho and c.step_ratio else c.step_size
    assert rho is not None and step_size is not None and c.steps is not None  # resolved
    threshold = _threshold(c)
    by_row = threshold if c.channel_group == "row" else None
    moreau = MoreauRun(
        run.engine,
        part.batches,
        run.noise(),
        rho,
        step_size,
        c.steps,
        c.noise_samples or 1,
        by_row,
        part.everywhere,
        relative,
    )
    last = min(c.average_last or 1, c.steps)
    total: dict[str, Tensor] = {}
    for t in moreau.iterate(delta):
        if threshold is not None and by_row is None:
            _shrink_units(delta, run, threshold)
        if last > 1 and t > c.steps - last:
            _add(total, delta, run)
    for name in run.names:
        d = total[name] / last if last > 1 else _at(delta, name, run)
        run.emit_saliency(name, d, part.weight / (rho * delta.scales.get(name, 1.0)))


@contextmanager
def _state(run: Scoring) -> Iterator[State]:
    """δ, where and in which dtype the config says."""
    c = run.config
    shapes = {name: run.model.get_parameter(name).shape for name in run.names}
    with ExitStack() as stack:
        folder = run.checkpoint
        if folder is None and c.offload == "disk":
            folder = stack.enter_context(temporary_folder("delta")) / "delta"
        dtype, devices = getattr(torch, c.state_dtype), {name: run.engine.device(name) for name in run.names}
        yield State(
            shapes,
            devices=devices,
            dtype=dtype,
            offload=c.offload,
            folder=folder,
            run=run.run if run.checkpoint else "",
        )


def _at(delta: State, name: str, run: Scoring) -> Tensor:
    device = run.engine.device(name)
    found = delta.get(name, device)
    return torch.zeros(delta.shapes[name], dtype=torch.float32, device=device) if found is None else found


def _add(total: dict[str, Tensor], delta: State, run: Scoring) -> None:
    for name in run.names:
        d = _at(delta, name, run).float()
        total[name] = total[name].add_(d) if name in total else d.clone()


def _threshold(c: MoreauPrunerConfig) -> Threshold | None:
    """α of the group soft threshold, from the norms of the groups; or none."""
    if c.eta is None and c.eta_quantile is None:
        return None

    def threshold(norms: Tensor) -> Tensor | float:
        if c.eta is not None and c.step_size is not None:
            return c.step_size * c.eta  # α = γη
        return torch.quantile(norms, c.eta_quantile or 0.0)

    return threshold


def _shrink_units(delta: State, run: Scoring, threshold: Threshold) -> None:
    """Soft-thresholds whole units: the group is a unit's part of all the matrices it spans."""
    norms = {block.where: _unit_norms(delta, run, block) for block in run.blocks}  # (units,) each
    layers: dict[int | None, list[Block]] = {}
    for block in run.blocks:
        layers.setdefault(block.layer, []).append(block)
    for blocks in layers.values():
        alpha = threshold(torch.cat([norms[block.where] for block in blocks]))
        for block in blocks:
            factor = shrink(norms[block.where], alpha).float()
            for cut, name in block.weight_names().items():
                d = _at(delta, name, run)
                delta.put(name, d * block.spread(cut, factor, d))


def _unit_norms(delta: State, run: Scoring, block: Block) -> Tensor:
    """‖δ_S‖₂ per unit over all matrices it spans, float64 `(units,)` on CPU."""
    names = block.weight_names().items()
    squares = [block.sum_per_unit(cut, _at(delta, name, run).float().square()).cpu() for cut, name in names]
    return torch.stack(squares).sum(dim=0).sqrt()


def _cost(config: MoreauPrunerConfig) -> Cost:
    draws = config.noise_samples or 1
    batches = 1 if config.per_sample else batches_per_pass(config)
    floats = (draws * batches > 1) + ((config.average_last or 1) > 1)  # a sum over passes, a sum of the last iterates
    batch = 1 if config.per_sample else None
    return Cost(passes=(config.steps or 0) * draws, floats=floats, states=1, noisy=True, batch=batch)


def _resumable(config: MoreauPrunerConfig) -> bool:
    """Whether δ and the scales beside it are all that a step hands on to the next."""
    return not config.released and (config.average_last or 1) == 1 and not config.per_sample


# As measured (docs/results.md, "Moreau's own scale"); the paper's are in `PAPER_STEPS`.
_DEFAULTS: dict[str, Any] = {
    "relative_rho": 0.03, "step_ratio": 0.2, "sigma": 0.2, "steps": 10, "noise_samples": 1, "average_last": 1,
}  # fmt: skip

MOREAU = Criterion(
    name="moreau",
    summary="gradient of the Moreau envelope, Σ|∇g^ρ(w)⊙w|",
    paper=MOREAU_PRUNER,
    score=score,
    needs=("gradients",),
    defaults=_DEFAULTS,
    cost=_cost,
    partial=lambda config: config.per_sample,
    resumable=_resumable,
)
MOREAU_GS = Criterion(
    name="moreau-gs",
    summary="gradient of the Moreau envelope, group-sparse per channel",
    paper=MOREAU_PRUNER,
    score=score,
    needs=("gradients",),
    defaults={**_DEFAULTS, "eta": None, "eta_quantile": 0.1},
    cost=_cost,
    partial=lambda config: config.per_sample,
    resumable=_resumable,
)
