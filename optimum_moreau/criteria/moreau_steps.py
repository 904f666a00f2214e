"""What moreau.py runs: Algorithm 1 over a model's weights in scope, or the published code's update (`released`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ..envelope import LossGradient, MoreauRun, State, Tensors, shrink, smoothed_gradient
from ..envelope.moreau import Threshold
from ..files.temporary import temporary_folder
from ..models.units import Block
from .scoring_run import Part, Scoring


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
    by_row, noise = threshold if c.by_row else None, run.noise()
    moreau = MoreauRun(
        run.engine, part.batches, noise, rho, step_size, c.steps, c.noise_samples, by_row, part.everywhere, relative
    )
    last = min(c.average_last, c.steps)
    total: dict[str, Tensor] = {}
    for t in moreau.iterate(delta):
        if threshold is not None and by_row is None:
            _shrink_units(delta, run, threshold)
        if last > 1 and t > c.steps - last:
            for name in run.names:
                d = _at(delta, name, run).float()
                total[name] = total[name].add_(d) if name in total else d.clone()
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
        devices = {name: run.engine.device(name) for name in run.names}
        dtype, kept = getattr(torch, c.criterion.state_dtype), run.run if run.checkpoint else ""
        yield State(shapes, devices=devices, dtype=dtype, offload=c.offload, folder=folder, run=kept)


def _at(delta: State, name: str, run: Scoring) -> Tensor:
    device = run.engine.device(name)
    found = delta.get(name, device)
    return torch.zeros(delta.shapes[name], dtype=torch.float32, device=device) if found is None else found


def _shrink_units(delta: State, run: Scoring, threshold: Threshold) -> None:
    """Soft-thresholds whole units: the group is a unit's part of all the matrices it spans."""
    norms = {}  # ‖δ_S‖₂ per unit over all matrices it spans, float64 (units,) on CPU
    layers: dict[int | None, list[Block]] = {}
    for block in run.blocks:
        cuts = block.weight_names().items()
        squares = [block.sum_per_unit(cut, _at(delta, name, run).float().square()).cpu() for cut, name in cuts]
        norms[block.where] = torch.stack(squares).sum(dim=0).sqrt()
        layers.setdefault(block.layer, []).append(block)
    for blocks in layers.values():
        alpha = threshold(torch.cat([norms[block.where] for block in blocks]))
        for block in blocks:
            factor = shrink(norms[block.where], alpha).float()
            for cut, name in block.weight_names().items():
                d = _at(delta, name, run)
                delta.put(name, d * block.spread(cut, factor, d))


def released_gradient(run: Scoring) -> Tensors:
    """Returns −δ/ρ by parameter name in float32, δ the mean of the last iterates of the published code's update.

    It departs from Algorithm 1 in five ways (verified by running that code):

    - the proximal term has no gradient path, so ρ never reaches the update: δ ← δ − γ·g;
    - the group norm is the row's RMS; a row is kept where RMS > η·γ, but shrunk by 1 − η/RMS, which is negative for
      rows with η·γ < RMS < η: their δ alternates in sign from step to step, and larger gradients score lower;
    - the score is the mean of the last five iterates;
    - noise and δ live on every parameter, embeddings, norms and head included, with one draw per step;
    - `moreau` has no group threshold.

    Vectors (norm weights, biases) count as one row. This is a plain reference path: it holds δ for the whole model.
    """
    c = run.config.criterion
    weights = {name: parameter.detach() for name, parameter in run.model.named_parameters()}
    gradient = LossGradient(run.model, run.batches)
    delta = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    mean = {name: torch.zeros_like(d) for name, d in delta.items()}
    last = min(c.average_last, c.steps)
    for t in range(c.steps):
        g = smoothed_gradient(gradient, weights, run.noise(), step=t, delta=delta)
        for name, d in delta.items():
            d.sub_(g.pop(name), alpha=c.step_size)  # δ ← δ − γ·g
            if (eta := getattr(c, "eta", None)) is not None:
                d.mul_(released_shrink(d, eta, c.step_size))
            if t >= c.steps - last:
                mean[name].add_(d, alpha=1 / last)
    return {name: m.div_(-c.rho) for name, m in mean.items()}


def released_shrink(delta: Tensor, eta: float, step_size: float) -> Tensor:
    """Returns per row 1 − η/RMS where RMS > η·γ, else 0; broadcasts against `delta`."""
    rms = delta.square().mean(dim=-1, keepdim=True).sqrt()
    factor = 1 - eta / rms.clamp_min(torch.finfo(rms.dtype).tiny)
    return torch.where(rms > eta * step_size, factor, torch.zeros_like(rms))
