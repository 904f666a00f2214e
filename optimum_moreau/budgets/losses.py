"""The least loss for a number of parameters: min Σ_b Δ_b(n_b), of Δ_b that were measured, made smooth and convex.

A sum of convex functions is minimised, so the greedy allocation is exact: unit by unit, what costs the least loss per
parameter goes first. What the n-th unit of a block costs is interpolated between the slopes of the lower convex hull of
the points (n, Δ_b(n)) and (0, 0), each put at the middle of its segment, and extrapolated to n = 0: with the bare
slopes whole segments went at once, and two draws of the text took a quarter of a block here or there. Beyond the last
point nothing is measured, and the slope is taken to double and double again (`_BEYOND`): with all but one unit measured
instead, the chord to that point made a search empty whole blocks, and a model got worse than the uniform one, as blocks
that are empty together cost more than the sum of each alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..models.units import Block

_BEYOND = (2.0, 4.0)  # of the last slope, over each half of the units beyond what is measured: a choice, not a law
Point = tuple[int, float]


def allocate(
    blocks: Sequence[Block], goal: float, curves: Sequence[np.ndarray], most: Sequence[float] | None = None
) -> dict[Block, float]:
    """Spreads a number of parameters over blocks so that Σ_b Δ_b is least.

    Args:
        blocks: of any kind.
        goal: parameters.
        curves: of each block, by how much the loss grows with its n-th unit, float64 `(units − 1,)`.
        most: the largest share of each block that may go; default: all but one unit.

    Returns:
        Block → number of units, not whole for one of them.
    """
    sizes = np.array([float(block.unit_parameters) for block in blocks])
    limits = np.array([block.total for block in blocks]) * (most or math.inf)
    of = np.repeat(np.arange(len(blocks)), [len(found) for found in curves])
    numbers = np.concatenate([np.arange(len(found)) for found in curves])
    order = np.lexsort((numbers, of, np.concatenate(list(curves)) / sizes[of]))
    whole = np.clip(limits[of] - numbers, 0.0, 1.0) * sizes[of]  # of each unit, what may go
    before = np.cumsum(whole[order]) - whole[order]
    taken = np.clip(goal - before, 0.0, whole[order])
    removed = np.bincount(of[order], taken, len(blocks)) / sizes
    return dict(zip(blocks, removed.tolist(), strict=True))


def unit_losses(total: int, points: Sequence[Point]) -> np.ndarray:
    """By how much the loss grows with the n-th of `total` units that goes, in nats; it never falls with n.

    Args:
        total: of the block.
        points: (n, Δ(n)) that were measured, n ascending.

    Returns:
        float64 array `(units − 1,)`, n = 1 … all but one.
    """
    hull = _hull(points)
    middles = [(left[0] + right[0]) / 2 for left, right in pairwise(hull)]
    slopes = [_slope(left, right) for left, right in pairwise(hull)]
    if not slopes:
        return np.zeros(0)
    end = hull[-1][0]
    if rest := total - 1 - end:
        steepest = max(map(abs, [*slopes, _slope(hull[0], hull[-1])]))  # a loss may have fallen
        middles += [end + rest / 4, end + rest * 3 / 4]
        slopes += [times * steepest for times in _BEYOND]
    if len(slopes) > 1:  # the line through the first two, down to no loss
        start = slopes[0] - middles[0] * (slopes[1] - slopes[0]) / (middles[1] - middles[0])
        middles, slopes = [0.0, *middles], [max(start, min(slopes[0], 0.0)), *slopes]
    return np.interp(np.arange(total - 1) + 0.5, middles, slopes)


def _hull(points: Sequence[Point]) -> list[Point]:
    """The corners of the lower convex hull of (0, 0) and some points, from left to right."""
    hull: list[Point] = [(0, 0.0)]
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: Point, right: Point) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
