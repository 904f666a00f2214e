"""Algorithm 1 of MoreauPruner over a model's weights in scope, and the importance of where it ends (moreau.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ..envelope import MoreauRun, State, shrink
from ..files.temporary import temporary_folder
from ..models.units import Block
from .released import released_gradient
from .run import Part, Scoring

Threshold = Callable[[Tensor], Tensor | float]


def score(run: Scoring) -> None:
    """Emits |δ/ρ_W ⊙ w| after T steps of Algorithm 1, or |δ_n/ρ_W ⊙ w| / N of every sample n."""
    if run.config.criterion.released:
        for name, gradient in released_gradient(run).items():
            if name in run.names:
                run.emit_saliency(name, gradient)
        return
    with _state(run) as delta:
        for part in run.parts():
            if run.config.criterion.per_sample:
                delta.reset()
            _score_part(run, delta, part)


def _score_part(run: Scoring, delta: State, part: Part) -> None:
    """Runs the steps that are left of T on a part of the text, and emits its importance."""
    c = run.config.criterion
    relative = c.relative_rho is not None
    rho = c.relative_rho or c.rho
    step_size = rho * c.step_ratio if rho and c.step_ratio else c.step_size
    threshold = c.threshold()
    by_row = threshold if c.by_row else None
    moreau = MoreauRun(
        run.engine,
        part.batches,
        run.noise(),
        rho,
        step_size,
        c.steps,
        c.noise_samples,
        by_row,
        part.everywhere,
        relative,
    )
    last = min(c.average_last, c.steps)
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
        dtype, devices = getattr(torch, c.criterion.state_dtype), {name: run.engine.device(name) for name in run.names}
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
