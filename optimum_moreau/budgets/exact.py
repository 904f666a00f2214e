"""Counts of units whose parameters come to a goal as nearly as one unit allows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence

from ..models.units import Block


def cost_of(counts: Mapping[Block, int]) -> int:
    """Parameters that go with these units."""
    return sum(count * block.unit_parameters for block, count in counts.items())


def nearest_of(numbers: Sequence[int], x: float) -> int:
    """The one of some ascending numbers nearest to x; on a tie the smaller one."""
    x = round(x, 9)
    place = bisect_left(numbers, x)
    return min(numbers[max(place - 1, 0) : place + 1], key=lambda n: (abs(n - x), n))


def settled(
    counts: Mapping[Block, int], goal: float, legal: Mapping[Block, Sequence[int]], free: Iterable[Block] | None = None
) -> dict[Block, int]:
    """Moves counts by a common number of units per round, until they come nearest to a goal.

    What is missing is spread evenly over those of the finest units that can give it: first whole shares, then a step
    each, in order, while that brings the total nearer.

    Args:
        counts: of every block.
        goal: parameters.
        legal: the numbers that may go, ascending.
        free: blocks that may be moved; default: those of the smallest units.
    """
    found = {block: nearest_of(legal[block], count) for block, count in counts.items()}
    finest = min((block.unit_parameters for block in found), default=0)
    free = list(free) if free is not None else [block for block in found if block.unit_parameters == finest]
    missing = goal - cost_of(found)
    while missing:
        room = [block for block in free if _next(legal[block], found[block], missing) is not None]
        if not room:
            break
        share, before = missing / sum(block.unit_parameters for block in room), missing
        for block in room:
            wanted: int | None = nearest_of(legal[block], found[block] + share) if abs(share) >= 1 else None
            if wanted in (None, found[block]):
                wanted = _next(legal[block], found[block], missing)
            if wanted is None:
                continue
            moved = (wanted - found[block]) * block.unit_parameters
            if abs(missing - moved) < abs(missing):
                found[block], missing = wanted, missing - moved
        if missing == before:
            break
    return found


def _next(numbers: Sequence[int], count: int, missing: float) -> int | None:
    """The next legal number in the direction of what is missing."""
    if missing > 0:
        place = bisect_right(numbers, count)
        return numbers[place] if place < len(numbers) else None
    place = bisect_left(numbers, count) - 1
    return numbers[place] if place >= 0 else None
