"""How much of a search there is: passes, windows, minutes; foretold before it begins, and bounded.

A pass from layer l of L on is 1 − l/L of a whole one, and ends in the head as that does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..models.units import Block

By = Literal["gradients", "passes"]
STARTS = 3  # plans that are tried whole before the rounds
AT_ONCE = 2  # windows, through a backward pass
EXCHANGES = 4  # sets of moves that are tried whole in each round


@dataclass(frozen=True)
class Extent:
    """Passes over the windows of a search.

    Attributes:
        measure: whole passes of the first measure, the model as it is and its stream included.
        rounds: whole passes of all rounds.
        heads: how often a pass ends in the head, in all.
        solves: matrices that are solved for, of each block, in all.
    """

    measure: int
    rounds: int
    heads: int
    solves: Mapping[Block, int]

    @classmethod
    def of(cls, levels: Mapping[Block, Sequence[int]], depth: int, rounds: int, by: By) -> Extent:
        """Counts.

        Args:
            levels: the numbers of units of each block that are measured gone.
            depth: number of layers of the model.
            rounds: of the neighbourhood.
            by: whether a block's steps take passes of their own. A backward pass counts as one forward, and what
                steps are told from it as one more.
        """

        def behind(times: Mapping[Block, int]) -> int:
            return math.ceil(sum(n * (depth - (block.layer or 0)) for block, n in times.items()) / depth)

        starts = STARTS if rounds else 0
        solves = {block: len(own) + starts + 4 * rounds for block, own in levels.items()}
        if by == "gradients":
            again = starts + rounds * (4 + EXCHANGES)
            return cls(4, again, 3 + starts + rounds * (3 + EXCHANGES), solves)
        alone, around = {block: len(own) for block, own in levels.items()}, dict.fromkeys(levels, 2)
        again = starts + rounds * (behind(around) + 1 + EXCHANGES)
        heads = 1 + sum(alone.values()) + starts + rounds * (2 * len(levels) + EXCHANGES)
        return cls(2 + behind(alone), again, heads, solves)

    @property
    def passes(self) -> int:
        """Whole passes, all together."""
        return self.measure + self.rounds


def solving(columns: int, rows: int) -> float:
    """Floating-point operations of one matrix that is solved for: a Cholesky factor, its use, and XᵀX's products."""
    return columns**3 / 3 + 4 * rows * columns**2
