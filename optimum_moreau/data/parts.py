"""Calibration windows in parts that share no text: two folds to fit on, and what is held out, to measure on.

Windows lie in order of their documents, and within one in order of their places. The last are held out; the others are
halved. Where one of the first half overlaps with the second, or one of these with what is held out, it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import DataError

Place = tuple[int, int]  # of a window: its document, and where in it the window starts


@dataclass(frozen=True)
class Parts:
    """Token ids `(windows, length)`.

    Attributes:
        folds: two halves to fit on; what is fitted on one is measured on the other.
        held_out: neither is fitted on.
        places: of the windows of both folds, A's first; none: each lies in a document of its own.
    """

    folds: tuple[Tensor, Tensor]
    held_out: Tensor
    places: tuple[Place, ...] = ()

    @property
    def fitted(self) -> int:
        """Windows of both folds."""
        return sum(map(len, self.folds))

    def watched(self, share: float) -> tuple[list[int], list[int]]:
        """Which windows of both folds, A's first, are trained on, and which are watched meanwhile.

        The last are watched, and those that overlap with them left out; where that leaves none, the second fold is
        watched.

        Args:
            share: of all that is watched; one window at least.
        """
        count, first = self.fitted, self.folds[0]
        last = list(range(count - max(1, round(share * count)), count))
        where = self.places or [(i, 0) for i in range(count)]
        trained = _apart(list(range(last[0])), last, where, first.shape[1])
        return (trained, last) if trained else (list(range(len(first))), list(range(len(first), count)))


def parted(tokens: Tensor, held_out: int, places: Sequence[Place] = (), name: str = "calibration text") -> Parts:
    """Parts windows.

    Args:
        tokens: `(windows, length)`.
        held_out: windows that are kept out, but no more than a third of all.
        places: where each window lies; default: in a document of its own.
        name: of the text, for messages.

    Raises:
        DataError: the text is too short for three parts.
    """
    where, length = list(places) or [(i, 0) for i in range(len(tokens))], tokens.shape[1]
    order = sorted(range(len(tokens)), key=where.__getitem__)
    out = order[len(order) - min(held_out, len(order) // 3) :]
    rest = _apart(order[: len(order) - len(out)], out, where, length)
    first, second = _halves(rest, where, length)
    if not (first and second and out):
        raise DataError(
            f"{name}: {len(tokens)} windows of {length} tokens leave none to hold out, and what is fitted to a text"
            " says nothing on that text; give longer text, more windows, or compensation 'none'"
        )
    return Parts((tokens[first], tokens[second]), tokens[out], tuple(where[i] for i in (*first, *second)))


def _halves(windows: list[int], where: Sequence[Place], length: int) -> tuple[list[int], list[int]]:
    """At the middle; where that leaves none in the first half, between the two documents that are nearest to it."""
    middle = len(windows) // 2
    borders = [i for i in range(1, len(windows)) if where[windows[i]][0] != where[windows[i - 1]][0]]
    found = _apart(windows[:middle], windows[middle:], where, length), windows[middle:]
    if found[0] or not borders:
        return found
    border = min(borders, key=lambda i: abs(i - middle))
    return windows[:border], windows[border:]


def _apart(windows: list[int], later: list[int], where: Sequence[Place], length: int) -> list[int]:
    """Those that end before the first of some later ones begins."""
    if not later:
        return windows
    document, start = where[later[0]]
    return [i for i in windows if where[i][0] != document or where[i][1] + length <= start]
