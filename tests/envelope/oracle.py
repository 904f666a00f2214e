"""Algorithm 1 as it is written, on whole dictionaries of tensors, and the noise alone: the oracle of the engine."""

import torch
from tqdm import tqdm

from optimum_moreau.distributed import seed_of
from optimum_moreau.envelope import proximal_step, smoothed_gradient
from optimum_moreau.envelope.moreau import step_scale
from optimum_moreau.envelope.noise import for_pieces


def moreau_gradient(
    gradient,
    weights,
    *,
    rho,
    step_size,
    steps,
    noise,
    noise_samples=1,
    average_last=1,
    prox=None,
    relative=False,
):
    """Gradient of the Moreau envelope of the smoothed loss at `weights` (Algorithm 1).

    Args:
        gradient: ∇f.
        weights: w; not changed.
        rho: ρ.
        step_size: γ.
        steps: T.
        noise: of the smoothing.
        noise_samples: m, draws per step.
        average_last: the mean over this many last iterates is returned.
        prox: applied to δ after each step, for MoreauPruner-GS the group soft threshold.
        relative: ρ and γ of each matrix are multiples of ‖W‖_F/‖g_W‖_F, g_W the gradient of the first step.

    Returns:
        −δ/ρ in float32, by name: the gradient with its sign.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; names the step.
    """
    delta = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    scales = dict.fromkeys(delta, 1.0)
    total = {name: torch.zeros_like(d) for name, d in delta.items()} if average_last > 1 else None
    for t in tqdm(range(steps), desc="Moreau steps", leave=False, disable=None):
        g = smoothed_gradient(gradient, weights, noise, draws=noise_samples, step=t, delta=delta)
        if not t and relative:
            scales = {name: float(step_scale(weights[name], g[name])) for name in delta}
        for name, d in delta.items():
            proximal_step(d, g.pop(name), rho=rho * scales[name], step_size=step_size * scales[name])
        if prox is not None:
            delta = prox(delta)  # δ ← GST_γη(δ)                      (Algorithm 1, line 7)
        if total is not None and t >= steps - average_last:
            for name, d in delta.items():
                total[name] += d
    if total is not None:
        delta = {name: d / min(average_last, steps) for name, d in total.items()}
    return {name: d.div_(-rho * scales[name]) for name, d in delta.items()}


def noise_of(noise, weight, name, step, draw):
    """z in float32, of one weight, at a step and a draw of it from 0."""
    w = weight.detach().reshape(-1)
    z = torch.zeros(w.shape, dtype=torch.float32)
    seed = seed_of(noise.seed, step, draw, name)

    def draw_piece(index, piece):
        z[piece] = noise._with_noise(z[piece], w[piece].float(), seed + index)

    for_pieces(draw_piece, w)
    return z.view(weight.shape)
