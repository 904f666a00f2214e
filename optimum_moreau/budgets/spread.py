"""How a share p of the units of one kind is spread over the layers: p_l of layer l, p in the mean over parameters.

uniform   p_l = p
cosine    p_l ∝ softmax_l(10·c_l), c_l the mean cosine similarity of layer l's input and output (SlimLLM)
owl       p_l = p − 2λ·d_l + mean(2λ·d), d_l = (D_l − min D)/(max D − min D), D_l its share of outliers; λ = 0.08 (OWL)
search    min Σ_b Δ_b(n_b) subject to the parameters asked for, Δ_b the measured loss, made smooth and convex
global    one ranking of all units by their score per parameter
zscore    one ranking by z = (s − mean_b)/std_b, of each block b its own mean and deviation (FLAP)

Where a p_l is more, or less, than the layer can give, it gives what it can, and the others the rest: in proportion
(cosine), or by the same shift for all (owl). What is measured lies beside the scores (scoring/profiles.py).

The search minimises a sum of convex functions, so the greedy allocation is exact: unit by unit, what costs the least
loss per parameter goes first. What the n-th unit of a block costs is interpolated between the slopes of the lower
convex hull of the points (n, Δ_b(n)) and (0, 0), each put at the middle of its segment, and extrapolated to n = 0: with
the bare slopes whole segments went at once, and two draws of the text took a quarter of a block here or there. Beyond
three quarters of a block nothing is measured, and the slope is taken to double and double again (`_BEYOND`): with all
but one unit measured instead, the chord to that point made the search empty whole blocks, and a model got worse than
the uniform one, as blocks that are empty together cost more than the sum of each alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..criteria.papers import FLAP_PAPER, OWL_PAPER, SLIM_LLM
from ..models.units import Block
from ..scoring.profiles import probes, profile_of

# summary and source
BUDGETS = {
    "cosine": ("layers whose output is like their input give more: softmax of 10·cos", SLIM_LLM),
    "owl": ("layers with more outliers among |W|·√A keep more", OWL_PAPER),
    "zscore": ("one ranking of all units by their scores, standardised in each block", FLAP_PAPER),
    "search": ("layers whose silent units cost the least calibration loss give more", ""),
}
RANKINGS = ("global", "zscore")  # one ranking over all layers, no shares
LAMBDA, TEMPERATURE = 0.08, 10.0
_BEYOND = (2.0, 4.0)  # of the last slope, over each half of the units beyond what is measured: a choice, not a law
_STEPS = 100  # of a bisection: to the last bit

Ranking = Mapping[str, Tensor]


def shares(
    budget: str, blocks: Sequence[Block], share: float, values: Ranking, most: Sequence[float]
) -> dict[Block, float]:
    """Spreads a share of the units over blocks of one kind.

    Args:
        budget: its name, not one of RANKINGS.
        blocks: of one kind, each of another layer.
        share: p.
        values: of `UnitScores`, with what the budget measured.
        most: the largest legal share of each block.

    Returns:
        Block → p_l.

    Raises:
        PlanError: what the budget reads was not measured.
    """
    if budget == "uniform" or not blocks:
        return dict.fromkeys(blocks, share)
    sizes = [float(block.total * block.unit_parameters) for block in blocks]
    goal = share * sum(sizes)
    if budget == "search":
        removed = allocate(blocks, goal, values, most)
        return {block: removed[block] / block.total for block in blocks}
    layers = [block.layer or 0 for block in blocks]
    profile = profile_of(values, budget, size=max(layers) + 1)
    own = [profile[layer] for layer in layers]
    if budget == "cosine":
        weights = [math.exp(TEMPERATURE * (c - max(own))) for c in own]
        found = _level(lambda t: [t * weight for weight in weights], sizes, goal, most)
    else:
        gains = owl_gains(own)
        found = _level(lambda t: [t - gain for gain in gains], sizes, goal, most)
    return dict(zip(blocks, found, strict=True))


def owl_gains(outliers: Sequence[float]) -> list[float]:
    """2λ·d_l: by how much more of itself each layer keeps than the one with the fewest outliers."""
    low, high = min(outliers), max(outliers)
    return [2 * LAMBDA * (found - low) / (high - low) if high > low else 0.0 for found in outliers]


def standardised(score: Tensor) -> Tensor:
    """z of the units of one block, `(units,)`; those removed before (−∞) do not count, and go first."""
    there = ~score.isneginf()
    mean = score[there].mean() if there.any() else score.new_zeros(())
    deviation = (score[there] - mean).square().mean().sqrt() if there.any() else score.new_ones(())
    z = (score - mean) / deviation if deviation > 0 else torch.zeros_like(score)
    return torch.where(there, z, -math.inf)


def allocate(
    blocks: Sequence[Block], goal: float, values: Ranking, most: Sequence[float] | None = None
) -> dict[Block, float]:
    """Spreads a number of parameters over blocks so that Σ_b Δ_b is least.

    Args:
        blocks: of any kind.
        goal: parameters.
        values: of `UnitScores`, with what `search` measured.
        most: the largest share of each block that may go; default: all but one unit.

    Returns:
        Block → number of units, not whole for one of them.
    """
    sizes = np.array([float(block.unit_parameters) for block in blocks])
    limits = (
        [share * block.total for share, block in zip(most, blocks, strict=True)] if most else [math.inf] * len(blocks)
    )
    losses = [unit_losses(block, values) for block in blocks]
    of = np.repeat(np.arange(len(blocks)), [len(found) for found in losses])
    numbers = np.concatenate([np.arange(len(found)) for found in losses])
    order = np.lexsort((numbers, of, np.concatenate(losses) / sizes[of]))
    whole = np.clip(np.array(limits)[of] - numbers, 0.0, 1.0) * sizes[of]  # of each unit, what may go
    before = np.cumsum(whole[order]) - whole[order]
    taken = np.clip(goal - before, 0.0, whole[order])
    removed = np.bincount(of[order], taken, len(blocks)) / sizes
    return dict(zip(blocks, removed.tolist(), strict=True))


def predicted_loss(counts: Mapping[Block, int], values: Ranking) -> float:
    """Σ_b Δ_b(n_b), on the smooth curves: what the search minimises."""
    return sum(float(unit_losses(block, values)[:count].sum()) for block, count in counts.items())


def unit_losses(block: Block, values: Ranking) -> np.ndarray:
    """By how much the loss grows with the n-th unit that goes, n = 1 … all but one, in nats; it never falls with n.

    Args:
        block: of heads or MLP channels.
        values: of `UnitScores`, with what `search` measured.

    Returns:
        float64 array `(units − 1,)`.
    """
    hull = _hull(block, values)
    middles = [(left[0] + right[0]) / 2 for left, right in pairwise(hull)]
    slopes = [_slope(left, right) for left, right in pairwise(hull)]
    if not slopes:
        return np.zeros(0)
    end = hull[-1][0]
    if rest := block.total - 1 - end:
        steepest = max(map(abs, [*slopes, _slope(hull[0], hull[-1])]))  # a loss may have fallen
        middles += [end + rest / 4, end + rest * 3 / 4]
        slopes += [times * steepest for times in _BEYOND]
    if len(slopes) > 1:  # the line through the first two, down to no loss
        start = slopes[0] - middles[0] * (slopes[1] - slopes[0]) / (middles[1] - middles[0])
        middles, slopes = [0.0, *middles], [max(start, min(slopes[0], 0.0)), *slopes]
    return np.interp(np.arange(block.total - 1) + 0.5, middles, slopes)


def _hull(block: Block, values: Ranking) -> list[tuple[int, float]]:
    """The corners of the lower convex hull of (0, 0) and the points measured, from left to right."""
    counts = probes(block.total)
    hull = [(0, 0.0)]
    for point in zip(counts, profile_of(values, "search", block, len(counts)), strict=False):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def _level(
    parts: Callable[[float], list[float]], sizes: Sequence[float], goal: float, most: Sequence[float]
) -> list[float]:
    """The parts of a level t, each within [0, most], at which Σ size·part is the goal; parts grow with t."""

    def clipped(t: float) -> list[float]:
        return [min(max(part, 0.0), limit) for part, limit in zip(parts(t), most, strict=True)]

    def removed(t: float) -> float:
        return sum(size * part for size, part in zip(sizes, clipped(t), strict=True))

    if goal <= 0:
        return [0.0] * len(sizes)
    low, high = 0.0, 1.0
    while removed(high) < min(goal, sum(size * limit for size, limit in zip(sizes, most, strict=True))) * (1 - 1e-12):
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if removed(middle) < goal else (low, middle)
    return clipped(high)
