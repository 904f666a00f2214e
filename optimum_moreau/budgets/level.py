"""Shares that follow one level: each layer gives what it can of its own, and the others the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_STEPS = 100  # of a bisection: to the last bit


def level(
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
