"""How many heads and MLP channels each layer gives up, for a share of the units or for a number of parameters.

Counting rules (DESIGN.md, Conventions): a block of n units at unit ratio r gives the legal number nearest to n·r, fewer
on a tie, never all. For a number of parameters, attention units are rounded first and MLP channels take up the
difference.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..config import MoreauPrunerConfig
from ..units import Block
from .engines import LegalCounts

Counts = dict[Block, int]
Ranking = Mapping[str, Tensor]


def nearest_of(numbers: Sequence[int], x: float) -> int:
    """The one of some ascending numbers nearest to x; on a tie the smaller one."""
    x = round(x, 9)
    place = bisect_left(numbers, x)
    return min(numbers[max(place - 1, 0) : place + 1], key=lambda n: (abs(n - x), n))


class UnitCounts:
    """Chooses how many units of each block go.

    Args:
        blocks: heads and channels in scope.
        ranking: `layers.3.mlp` → scores of its units.
        config: resolved.
        legal: the numbers that may go.
    """

    def __init__(self, blocks: Sequence[Block], ranking: Ranking, config: MoreauPrunerConfig, legal: LegalCounts):
        self.attention = [block for block in blocks if block.kind == "attention"]
        self.mlp = [block for block in blocks if block.kind == "mlp"]
        self.ranking, self.config, self.legal = ranking, config, legal

    def by_share(self, attention: float, mlp: float) -> Counts:
        """Removes a share of the units of each kind."""
        return self._share(self.attention, attention) | self._share(self.mlp, mlp)

    def by_parameters(self, goal: float) -> Counts:
        """Removes as nearly `goal` parameters as counts allow: attention at the common share, MLP the difference."""
        if goal <= 0:
            return self.by_share(0, 0)
        whole = sum(block.total * block.unit_parameters for block in (*self.attention, *self.mlp))
        units = sum(block.total for block in self.attention)
        best: Counts = {}
        missed = math.inf
        # The common share first; then one unit fewer, one more, … until the channels can take up the difference.
        for offset in sorted(range(-units, units + 1), key=lambda n: (abs(n), n)):
            share = goal / max(whole, 1) + (offset / units if units else 0)
            if not 0 <= share <= 1:
                continue
            counts = self._share(self.attention, share)
            counts |= self._parameters(self.mlp, goal - cost_of(counts))
            if abs(goal - cost_of(counts)) < missed:
                best, missed = counts, abs(goal - cost_of(counts))
            if missed <= self.slack * max(len(self.mlp), 1):
                break
        return best

    @property
    def most(self) -> int:
        """The most parameters that the blocks can give."""
        return sum(self.legal.removable(block)[-1] * block.unit_parameters for block in (*self.attention, *self.mlp))

    @property
    def slack(self) -> float:
        """Half of what the finest step of one block removes: a goal beyond `most` by less counts as reached."""
        finest = self.mlp or self.attention
        return max((block.unit_parameters * self.legal.step(block.kind) for block in finest), default=0) / 2

    def _share(self, blocks: Sequence[Block], share: float) -> Counts:
        """Removes a share of the units: of each block, or of all off the bottom of one ranking."""
        if self.config.budget == "global":
            return self._global(blocks, share * sum(block.total for block in blocks), per_unit=True)
        if self.config.uniform:
            return self._one_shape(blocks, share)
        return {block: self._nearest(block, block.total * share) for block in blocks}

    def _parameters(self, blocks: Sequence[Block], rest: float) -> Counts:
        """Removes as many units as come nearest to `rest` parameters."""
        if self.config.budget == "global":
            return self._global(blocks, rest, per_unit=False)
        return self._share(blocks, rest / max(sum(block.total * block.unit_parameters for block in blocks), 1))

    def _nearest(self, block: Block, x: float) -> int:
        # nothing to remove: the model's own number will do, unless the engine could not split it
        return self._fewest(block) if x <= 0 else nearest_of(self.legal.removable(block), x)

    def _fewest(self, block: Block) -> int:
        return 0 if self.legal.splits(block, block.total) else self.legal.removable(block)[0]

    def _one_shape(self, blocks: Sequence[Block], share: float) -> Counts:
        """The same number stays in every block: the legal one nearest to the mean, more on a tie."""
        if len({block.total for block in blocks}) <= 1:
            return {block: self._nearest(block, block.total * share) for block in blocks}
        common = set.intersection(*({block.total - n for n in self.legal.removable(block)} for block in blocks))
        wanted = (1 - share) * sum(block.total for block in blocks) / len(blocks)
        kept = min(common, key=lambda n: (abs(n - wanted), -n))
        return {block: block.total - kept for block in blocks}

    def _global(self, blocks: Sequence[Block], goal: float, *, per_unit: bool) -> Counts:
        """Takes units off the bottom of one ranking by importance per parameter, until the goal is met most nearly.

        Where only some numbers are legal, units go in chunks between them, ranked by their mean importance.

        Args:
            blocks: of one kind.
            goal: units or parameters to remove.
            per_unit: the goal counts units, not parameters.
        """
        entries = sorted(
            ((mean / block.unit_parameters, place, order), size, block)
            for place, block in enumerate(blocks)
            for order, (size, mean) in enumerate(self._chunks(block))
        )
        counts: Counts = {block: self._fewest(block) for block in blocks}
        goal -= sum(counts.values()) if per_unit else cost_of(counts)
        for _, size, block in entries:
            cost = size if per_unit else size * block.unit_parameters
            if goal <= cost / 2:  # nearest, fewer on a tie
                break
            counts[block] += size
            goal -= cost
        return counts

    def _chunks(self, block: Block) -> Iterator[tuple[int, float]]:
        """Yields size and mean score of the chunks a block can give, least important first."""
        values = torch.sort(self.ranking[block.where]).values
        start = self._fewest(block)
        for end in self.legal.removable(block):
            if end > start:
                yield end - start, float(values[start:end].mean())
                start = end


def cost_of(counts: Counts) -> int:
    """Parameters that go with these units."""
    return sum(count * block.unit_parameters for block, count in counts.items())
