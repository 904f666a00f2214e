"""The second measure of a search: the neighbourhood of a plan, with all that goes together gone.

The first measure knows each block alone. So whole plans are tried first: the same share of every block, what the
first measure allocates, and the middle of both. Then, round by round, of the best one it is measured by how much the
loss grows where one block alone gives a step more, and falls where it gives a step less, all others as planned:

    u_b = (L(n_b + s) − L(n)) / parameters of s        d_b = (L(n) − L(n_b − s)) / parameters of s

With `by="gradients"` u and d are told to second order, all at once (fisher.py); with "passes" each is measured.

Steps are exchanged, the least u for the largest d, as long as u < d; of all of these together, and of ever fewer, the
set whose plan measures best is taken, where it lowers L. Every plan that is tried has the goal's parameters, to half a
unit. What heads count beyond what is measured of them (by_loss.py) is in L, as the first measure has it. Where nothing
lowers L, steps are halved. So a further round is never worse on the windows that are measured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..models.progress import progress
from ..models.units import Block, decoder_layers
from .exact import nearest_of, settled
from .extent import EXCHANGES
from .fisher import second_order
from .goals import Goal
from .probing import Probe

if TYPE_CHECKING:
    from .search import Search

logger = logging.getLogger(__name__)

Plan = dict[Block, int]


@dataclass
class Marginals:
    """What a step costs and saves, per parameter.

    Attributes:
        more: block → the count a step up, and u.
        less: block → the count a step down, and d.
    """

    more: dict[Block, tuple[int, float]] = field(default_factory=dict)
    less: dict[Block, tuple[int, float]] = field(default_factory=dict)


class Neighbourhood:
    """Improves a plan.

    Args:
        probe: what is measured with.
        goals: that a plan meets exactly.
        legal: the numbers that may go of each block, ascending.
        settings: of the search; a step is half of a level.
        extra: what the n-th unit of a block counts beyond what is measured; of blocks where it counts no more, none.
    """

    def __init__(
        self,
        probe: Probe,
        goals: Sequence[Goal],
        legal: Mapping[Block, Sequence[int]],
        settings: Search,
        extra: Mapping[Block, np.ndarray],
    ):
        self.probe, self.goals, self.legal, self.settings, self.extra = probe, goals, legal, settings, extra
        self.steps = first_steps(list(legal), settings.levels)
        self.loss = float("inf")
        self.plan: Plan = {}
        self.path: list[float] = []  # L of the plan after each round

    def start(self, plans: Mapping[str, Mapping[Block, float]]) -> None:
        """Takes the best of some plans, each made exact."""
        found = {name: self.exact(counts) for name, counts in plans.items()}
        for name, counts in found.items():
            if self.plan and self.late(1.0):
                break
            self.try_(counts, name)
        self.path.append(self.loss)

    def exact(self, counts: Mapping[Block, float]) -> Plan:
        """A plan of the goals' parameters near to some counts."""
        plan: Plan = {}
        for goal in self.goals:
            own = {block: nearest_of(self.legal[block], counts[block]) for block in goal.blocks}
            plan |= settled(own, goal.parameters, self.legal)
        return plan

    def try_(self, plan: Plan, name: str) -> float:
        """Measures a plan, and takes it where it is better."""
        with self.probe.net.composed(plan, keep=True):
            loss = self.probe.whole(f"the plan '{name}'") + sum(self.beyond(block, plan[block]) for block in plan)
        logger.info("search: %.4f nats of %s, %s", loss, self.probe.objective.kind, name)
        if loss < self.loss:
            self.plan, self.loss = plan, loss
        return loss

    def round(self, number: int) -> None:
        """Measures the neighbourhood and exchanges steps."""
        before = self.loss
        found = self.measured(number)
        exchanges = [sets for goal in self.goals for sets in [list(self.exchanged(found, goal))]]
        most, size, last = max(map(len, exchanges), default=0), 1.0, float("inf")
        for _ in range(EXCHANGES):
            if not most or self.late(1.0):
                break
            plan = dict(self.plan_before)
            for one in exchanges:
                plan |= one[max(round(len(one) * size), 1) - 1] if one else {}
            loss = self.try_(self.exact(plan), f"round {number}, {round(most * size)} exchanges")
            if loss > last and last < before:
                break
            last, size = loss, size / 2
            if round(most * size) < 1:
                break
        self.probe.net.keep_only(self.plan)
        self.path.append(self.loss)
        if self.loss >= before:
            self.steps = {block: max(step // 2, 1) for block, step in self.steps.items()}

    def beyond(self, block: Block, count: int) -> float:
        """What so many units of a block count beyond what is measured."""
        return float(self.extra[block][:count].sum()) if block in self.extra else 0.0

    def late(self, passes: float) -> bool:
        """Whether there is no time for so many passes."""
        left = self.probe.clock.left
        return left is not None and left < passes * self.probe.pass_seconds

    def measured(self, number: int) -> Marginals:
        """u and d of every block that can give more or less."""
        self.plan_before = dict(self.plan)
        steps: dict[Block, list[int]] = {}
        for block, count in self.plan.items():
            both = (nearest_of(self.legal[block], count + sign * self.steps[block]) for sign in (1, -1))
            steps[block] = [one for one in dict.fromkeys(both) if one != count]
        found = Marginals()
        for block, losses in self._grown(steps, number).items():
            for count, loss in zip(steps[block], losses, strict=False):
                moved = (count - self.plan[block]) * block.unit_parameters
                loss += self.beyond(block, count) - self.beyond(block, self.plan[block])
                (found.more if moved > 0 else found.less)[block] = count, loss / moved
        return found

    def _grown(self, steps: Mapping[Block, Sequence[int]], number: int) -> dict[Block, list[float]]:
        """By how much L grows with each step of each block; of the first layers alone, where time is short."""
        net, objective, model = self.probe.net, self.probe.objective, self.probe.run.model
        name = f"search, round {number}"
        with net.composed(self.plan, keep=True):
            if self.settings.by == "gradients":
                seed = self.probe.run.config.seed
                return second_order(model, net, steps, objective, now=self.plan, seed=seed, name=name)
            found: dict[Block, list[float]] = {}
            stream = self.probe.stream()
            for streamed in progress(stream, f"{name}, layers", len(decoder_layers(model))):
                for block in (block for block in steps if block.layer == streamed.index):
                    found[block] = []
                    for count in steps[block]:
                        if self.late(1.0):
                            break
                        with net.instead(block, count):
                            loss = objective.of(stream.logits(streamed), f"{block.where} without {count} units")
                        found[block].append(loss - self.loss)
            return found

    def exchanged(self, found: Marginals, goal: Goal) -> Iterator[Plan]:
        """Plans after ever more exchanges; a block moves one way."""
        more = sorted((block for block in goal.blocks if block in found.more), key=lambda one: found.more[one][1])
        less = sorted((block for block in goal.blocks if block in found.less), key=lambda one: -found.less[one][1])
        plan: Plan = {block: self.plan[block] for block in goal.blocks}
        moved: set[Block] = set()
        balance = 0  # parameters that were given back less those taken
        while True:
            give = next((block for block in less if block not in moved), None)
            take = next((block for block in more if block not in moved and block is not give), None)
            if give is None or take is None or found.more[take][1] >= found.less[give][1]:
                return
            for block, (count, _) in self._turn(balance, give, take, found):
                balance -= (count - plan[block]) * block.unit_parameters
                plan[block] = count
                moved.add(block)
            yield dict(plan)

    @staticmethod
    def _turn(balance: int, give: Block, take: Block, found: Marginals) -> list[tuple[Block, tuple[int, float]]]:
        """A step each way, or the one that is missing."""
        step = found.more[take][0] * take.unit_parameters
        if balance > step / 2 > 0:
            return [(take, found.more[take])]
        return [(give, found.less[give]), (take, found.more[take])]


def first_steps(blocks: Sequence[Block], levels: int) -> dict[Block, int]:
    """Half a level of the MLPs, and so many heads, and channels again, as have the same parameters.

    Args:
        blocks: in scope.
        levels: of each block in the first measure.
    """
    channels = [block for block in blocks if block.kind == "mlp"] or list(blocks)
    size = sum(block.total * block.unit_parameters for block in channels) / len(channels) / (2 * levels)
    heads = [block.unit_parameters for block in blocks if block.kind == "attention"]
    if heads:
        same = max(round(size / max(heads)), 1) * max(heads)
        size = same if same <= 2 * size else size
    return {block: max(round(size / block.unit_parameters), 1) for block in blocks}
