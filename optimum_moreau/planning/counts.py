"""How many heads and MLP channels each layer gives up, for a share of the units or for a number of parameters.

A block of n units at unit ratio r gives the legal number nearest to n·r, fewer on a tie, never all. For a number of
parameters, attention units are rounded first and MLP channels take up the difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from ..budgets import Uniform, protects
from ..budgets.exact import cost_of, nearest_of, settled
from ..config import MoreauPrunerConfig
from ..models.units import Block
from ..scoring.profiles import is_outlier
from ..scoring.scores import Ranking
from .runtimes import LegalCounts

Counts = dict[Block, int]


def removal_order(block: Block, ranking: Ranking, config: MoreauPrunerConfig) -> tuple[list[int], list[int]]:
    """The units of a block that may go, the first to go first, and those that never go.

    Those go first that went in an earlier round (−∞). Outliers never go, nor, of an MLP's other channels, a share of
    all, the lowest-scored.
    """
    score = ranking[block.where]
    order = torch.argsort(score, stable=True)  # equal scores: the lower index goes first
    stays = torch.zeros(block.total, dtype=torch.bool, device="cpu")
    if config.budget.protect_outliers is not None:
        stays = is_outlier(ranking, block, config.budget.protect_outliers)
    if config.budget.protect and block.kind == "mlp":
        others = order[~(stays | score.isneginf())[order]]
        stays = stays.index_fill(0, others[: math.floor(round(block.total * config.budget.protect, 9))], True)
    return order[~stays[order]].tolist(), order[stays[order]].tolist()


class UnitCounts:
    """Chooses how many units of each block go.

    Args:
        blocks: heads and channels in scope.
        ranking: `layers.3.mlp` → scores of its units; and what the budget measured of the layers (scoring/profiles.py).
        config: resolved.
        legal: the numbers that may go.
    """

    def __init__(self, blocks: Sequence[Block], ranking: Ranking, config: MoreauPrunerConfig, legal: LegalCounts):
        self.attention = [block for block in blocks if block.kind == "attention"]
        self.mlp = [block for block in blocks if block.kind == "mlp"]
        self.blocks = (*self.attention, *self.mlp)
        self.ranking, self.config, self.legal = ranking, config, legal
        # with uniform every layer is asked alike: too much is refused, not given by others
        limited = self.blocks if protects(config.budget) and config.budget.name != "uniform" else ()
        self.limits = {block: len(removal_order(block, ranking, config)[0]) for block in limited}

    def by_share(self, attention: float, mlp: float) -> Counts:
        """Removes a share of the units of each kind."""
        of = {"attention": (self.attention, attention), "mlp": (self.mlp, mlp)}
        if found := self._found({kind: share * _units_size(own) for kind, (own, share) in of.items() if own}):
            return found
        counts = self._share(self.attention, attention) | self._share(self.mlp, mlp)
        return self._no_worse(counts, self._even.by_share(attention, mlp)) if self.config.budget.by_loss else counts

    def by_parameters(self, goal: float) -> Counts:
        """Removes as nearly `goal` parameters as counts allow: attention at the common share, MLP the difference."""
        if goal <= 0:
            return self.by_share(0, 0)
        if found := self._found({"units": goal}):
            return found
        units = sum(block.total for block in self.attention)
        common = self._attention_part(goal)
        best: Counts = {}
        missed = math.inf
        # The common share first; then one unit fewer, one more, … until the channels can take up the difference.
        for offset in sorted(range(-units, units + 1), key=lambda n: (abs(n), n)):
            share = min(max(common + (offset / units if units else 0), 0.0), 1.0)
            counts = self._share(self.attention, share)
            counts |= self._parameters(self.mlp, goal - cost_of(counts))
            if abs(goal - cost_of(counts)) < missed:
                best, missed = counts, abs(goal - cost_of(counts))
            if missed <= self.slack * max(len(self.mlp), 1):
                break
        if not self.config.budget.by_loss:
            return best
        even = self._even.by_parameters(goal)
        as_near = abs(goal - cost_of(even)) <= max(missed, self.slack * max(len(self.mlp), 1))
        return self._no_worse(best, even) if as_near else best

    def near(self, goal: float) -> Iterator[Counts]:
        """What comes near to `goal` parameters with each number of attention units, from the common share outwards.

        Where all blocks of a kind are alike and the budget is uniform, the nearest of all is among these.
        """
        common = min(max(self._attention_part(goal), 0.0), 1.0)
        steps = {n / block.total for block in self.attention for n in range(block.total)} or {0.0}
        for share in sorted(steps, key=lambda step: (abs(step - common), step)):
            attention = self._share(self.attention, share)
            rest = goal - cost_of(attention)
            # an MLP that stays whole is legal, though its width may be no multiple
            for mlp in (self._parameters(self.mlp, max(rest, 0)), self._parameters(self.mlp, 0)):
                if self._unprotected(counts := attention | mlp):
                    yield counts

    @property
    def most(self) -> int:
        """The most parameters that the blocks can give."""
        return sum(self._removable(block)[-1] * block.unit_parameters for block in self.blocks)

    @property
    def slack(self) -> float:
        """Half of what the finest step of one block removes: a goal beyond `most` by less counts as reached."""
        finest = self.mlp or self.attention
        return max((block.unit_parameters * self.legal.step(block.kind) for block in finest), default=0) / 2

    def _share(self, blocks: Sequence[Block], share: float) -> Counts:
        """Removes a share of the units: of each block as the budget says, or of all off the bottom of one ranking."""
        if self.config.budget.ranks:
            return self._ranked(blocks, share * sum(block.total for block in blocks), per_unit=True)
        if self.config.uniform or not blocks:
            return self._one_shape(blocks, share)
        parts = self.config.budget.shares(blocks, share, self.ranking, self._most_shares(blocks))
        return {block: self._nearest(block, block.total * part) for block, part in parts.items()}

    def _most_shares(self, blocks: Sequence[Block]) -> list[float]:
        return [self._removable(block)[-1] / block.total for block in blocks]

    def _attention_part(self, goal: float) -> float:
        """The share of the units that attention gives, as the budget says."""
        units, budget = sum(block.total for block in self.attention), self.config.budget
        if not budget.by_loss or not units:
            return budget.attention_share(goal, _units_size(self.attention), _units_size(self.mlp))
        removed = budget.allocated(self.blocks, goal, self.ranking, self._most_shares(self.blocks))
        return sum(removed[block] for block in self.attention) / units

    def _found(self, goals: Mapping[str, float]) -> Counts | None:
        """The plan that the budget measured for these goals, if it did, made legal and exact."""
        budget = self.config.budget
        found = budget.found(self.ranking, goals) if budget.by_loss else None
        if found is None or not {block.where for block in self.blocks} <= found.keys():
            return None
        legal = {block: self._removable(block) for block in self.blocks}
        parts = {name: [b for b in self.blocks if name in ("units", b.kind)] for name in goals}
        counts: Counts = {}
        for name, own in parts.items():
            counts |= settled({block: found[block.where] for block in own}, goals[name], legal)
            if abs(goals[name] - cost_of({block: counts[block] for block in own})) > self.slack * max(len(own), 1):
                return None
        return counts

    @property
    def _even(self) -> UnitCounts:
        """Counts by a uniform budget, which protects the same units."""
        budget = self.config.budget
        uniform = Uniform(protect=budget.protect, protect_outliers=budget.protect_outliers)
        return UnitCounts(self.blocks, self.ranking, replace(self.config, budget=uniform), self.legal)

    def _no_worse(self, counts: Counts, even: Counts) -> Counts:
        """What was searched, unless rounding made it worse by its own measure than the same share of every layer."""
        if any(count > self._removable(block)[-1] for block, count in even.items()):
            return counts  # the same share of every layer would take what is protected
        return min((counts, even), key=lambda found: self.config.budget.predicted(found, self.ranking))

    def _parameters(self, blocks: Sequence[Block], rest: float) -> Counts:
        """Removes as many units as come nearest to `rest` parameters."""
        if self.config.budget.ranks:
            return self._ranked(blocks, rest, per_unit=False)
        return self._share(blocks, rest / _size(blocks))

    def _unprotected(self, counts: Counts) -> bool:
        return not protects(self.config.budget) or all(
            n <= len(removal_order(block, self.ranking, self.config)[0]) for block, n in counts.items()
        )

    def _removable(self, block: Block) -> Sequence[int]:
        """The numbers that may go: no fewer than in an earlier round; where layers differ, not what is protected."""
        removable, gone = self.legal.removable(block), self._gone(block)
        legal = [count for count in removable if count >= gone] or removable[-1:]
        if block not in self.limits:
            return legal
        return [count for count in legal if count <= self.limits[block]] or legal[:1]

    def _gone(self, block: Block) -> int:
        """Units that went in an earlier round."""
        return int(self.ranking[block.where].isneginf().sum()) if block.where in self.ranking else 0

    def _nearest(self, block: Block, x: float) -> int:
        # nothing to remove: the model's own number will do, unless the runtime could not split it
        return self._fewest(block) if x <= 0 else nearest_of(self._removable(block), x)

    def _fewest(self, block: Block) -> int:
        whole = self.legal.splits(block, block.total) and not self._gone(block)
        return 0 if whole else self._removable(block)[0]

    def _one_shape(self, blocks: Sequence[Block], share: float) -> Counts:
        """One number stays in every block: the legal one nearest to the mean, more on a tie."""
        if len({block.total for block in blocks}) <= 1:
            return {block: self._nearest(block, block.total * share) for block in blocks}
        common = set.intersection(*({block.total - n for n in self.legal.removable(block)} for block in blocks))
        wanted = (1 - share) * sum(block.total for block in blocks) / len(blocks)
        kept = min(common, key=lambda n: (abs(n - wanted), -n))
        return {block: block.total - kept for block in blocks}

    def _ranked(self, blocks: Sequence[Block], goal: float, *, per_unit: bool) -> Counts:
        """Takes units off the bottom of one ranking, until the goal is met most nearly.

        Where only some numbers are legal, units go in chunks between them, ranked by their mean importance. The goal
        counts units (`per_unit`) or parameters.
        """
        entries = sorted(
            ((mean, place, order), size, block)
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
        """Yields size and mean rank of the chunks a block can give, least important first."""
        score = self.ranking[block.where]
        ranks = self.config.budget.rank(score, block.unit_parameters)
        if block in self.limits:  # some never go
            ranks = ranks[removal_order(block, self.ranking, self.config)[0]]
        values = torch.sort(ranks).values
        start = self._fewest(block)
        for end in self._removable(block):
            if end > start:
                yield end - start, float(values[start:end].mean())
                start = end


def _units_size(blocks: Sequence[Block]) -> int:
    """Parameters of the units of some blocks."""
    return sum(block.total * block.unit_parameters for block in blocks)


def _size(blocks: Sequence[Block]) -> int:
    """Parameters of some blocks, or 1: what a share is of."""
    return max(_units_size(blocks), 1)
