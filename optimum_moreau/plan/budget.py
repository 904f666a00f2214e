"""Unit scores + targets → how many units, and which, each block gives up.

Counting rules (DESIGN.md, Conventions): a block of n units at unit ratio r gives the whole number nearest to n·r, fewer
on a tie, never all. For a share of the parameters, attention units are rounded first and MLP channels take up the
difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..config import MoreauPrunerConfig
from ..errors import PlanError
from ..scores import UnitScores, check_covers
from ..units import Block, ModelShape
from .pruning_plan import Kept, PruningPlan

Counts = dict[Block, int]
Ranking = dict[Block, Tensor]


def make_plan(scores: UnitScores, shape: ModelShape, config: MoreauPrunerConfig) -> PruningPlan:
    """Decides which units stay.

    Args:
        scores: of every unit in scope.
        shape: the model's shape.
        config: a resolved config.

    Returns:
        A plan that records where the scores come from, and this config.

    Raises:
        PlanError: the requested share cannot be reached, with the reachable range; or scores are missing.
    """
    blocks = shape.in_scope(config)
    check_covers(scores, blocks)
    ranking = {block: scores.values[block.where] for block in blocks}
    if config.unit_ratio is not None:
        removed = _by_unit_ratio(blocks, ranking, config)
    else:
        assert config.pruning_ratio is not None  # resolved
        removed = _by_parameters(blocks, ranking, config.pruning_ratio, shape.parameters, config)
    layers: dict[int, dict[str, Kept]] = {}
    for block in shape.blocks:
        kept = _keep(ranking[block], removed[block]) if removed.get(block) else tuple(range(block.total))
        layers.setdefault(block.layer, {})[block.kind] = Kept(kept, block.total)
    return PruningPlan(shape.family.model_type, layers, **{**scores.origin, "config": config.to_dict()})


def removed_parameters(plan: PruningPlan, shape: ModelShape) -> int:
    """Returns how many parameters a plan removes, exactly."""
    return sum(plan.layers[block.layer][block.kind].removed * block.unit_parameters for block in shape.blocks)


def removed_unit_share(plan: PruningPlan, blocks: Sequence[Block]) -> dict[str, float]:
    """Returns the share of the units in scope that go, by kind."""
    shares: dict[str, float] = {}
    for kind in dict.fromkeys(block.kind for block in blocks):
        kepts = [plan.layers[block.layer][kind] for block in blocks if block.kind == kind]
        shares[kind] = sum(kept.removed for kept in kepts) / sum(kept.total for kept in kepts)
    return shares


def nearest_fewer(x: float) -> int:
    """The whole number nearest to x; on a tie the smaller one."""
    return math.ceil(round(x, 9) - 0.5)  # rounding: 0.3 · 5 must not depend on the last bit


def _keep(score: Tensor, removed: int) -> tuple[int, ...]:
    order = torch.argsort(score, stable=True)  # equal scores: the lower index goes first
    return tuple(sorted(order[removed:].tolist()))


def _step(block: Block, config: MoreauPrunerConfig) -> int:
    """How many units stay is a multiple of this."""
    return config.multiple_of if block.kind == "mlp" else 1


def _legal(block: Block, x: float, step: int) -> int:
    """The legal number of units to remove that is nearest to x, fewer on a tie: what stays is a multiple of `step`."""
    most = block.total - step
    if most < 0:
        raise PlanError(f"{block.where}: multiple_of {step} with {block.total} channels; use at most {block.total}")
    if x <= 0:
        return 0
    first = block.total % step  # removing so many leaves a multiple
    return min(most, max(first, first + step * nearest_fewer((x - first) / step)))


def _removable(blocks: Sequence[Block], config: MoreauPrunerConfig) -> int:
    """The most parameters that these blocks can give."""
    return sum(max(block.total - _step(block, config), 0) * block.unit_parameters for block in blocks)


def _cost(counts: Counts) -> int:
    return sum(count * block.unit_parameters for block, count in counts.items())


def _by_unit_ratio(blocks: Sequence[Block], ranking: Ranking, config: MoreauPrunerConfig) -> Counts:
    given = config.unit_ratio
    assert given is not None  # the caller's branch
    ratio = given if isinstance(given, tuple) else (given, given)
    removed: Counts = {}
    for kind, share in zip(("attention", "mlp"), ratio, strict=True):
        of_kind = [block for block in blocks if block.kind == kind]
        removed |= _spread_share(of_kind, ranking, share, config)
    return removed


def _by_parameters(
    blocks: Sequence[Block], ranking: Ranking, ratio: float, parameters: int, config: MoreauPrunerConfig
) -> Counts:
    """Attention units are rounded at the common share; MLP channels take up the difference."""
    target = ratio * parameters
    attention = [block for block in blocks if block.kind == "attention"]
    mlp = [block for block in blocks if block.kind == "mlp"]
    most = _removable(blocks, config)
    slack = max((block.unit_parameters * _step(block, config) for block in mlp or attention), default=0) / 2
    if target > most + slack:
        raise PlanError(
            f"pruning_ratio {ratio:g} cannot be reached in this scope, which reaches from 0 to"
            f" {math.floor(1e4 * most / parameters) / 1e4:.4f}; widen attention_layers, mlp_layers or targets"
        )
    if not target:
        return {}
    whole = sum(block.total * block.unit_parameters for block in blocks)
    units = sum(block.total for block in attention)
    best: Counts = {}
    missed = math.inf
    # The common share first; then one unit fewer, one more, … until the channels can take up the difference.
    for offset in sorted(range(-units, units + 1), key=lambda n: (abs(n), n)):
        share = target / whole + (offset / units if units else 0)
        if not 0 <= share <= 1:
            continue
        counts = _spread_share(attention, ranking, share, config)
        counts |= _spread_parameters(mlp, ranking, target - _cost(counts), config)
        if abs(target - _cost(counts)) < missed:
            best, missed = counts, abs(target - _cost(counts))
        if missed <= slack * max(len(mlp), 1):
            break
    return best


def _spread_share(blocks: Sequence[Block], ranking: Ranking, share: float, config: MoreauPrunerConfig) -> Counts:
    """Removes a share of the units: of each block, or of all off the bottom of one ranking."""
    if config.budget == "global":
        return _global_counts(blocks, ranking, share * sum(block.total for block in blocks), config, per_unit=True)
    return {block: _legal(block, block.total * share, _step(block, config)) for block in blocks}


def _spread_parameters(blocks: Sequence[Block], ranking: Ranking, rest: float, config: MoreauPrunerConfig) -> Counts:
    """Removes as many units as come nearest to `rest` parameters."""
    if config.budget == "global":
        return _global_counts(blocks, ranking, rest, config, per_unit=False)
    share = rest / max(sum(block.total * block.unit_parameters for block in blocks), 1)
    return {block: _legal(block, block.total * share, _step(block, config)) for block in blocks}


def _global_counts(
    blocks: Sequence[Block], ranking: Ranking, goal: float, config: MoreauPrunerConfig, *, per_unit: bool
) -> Counts:
    """Takes units off the bottom of one ranking by importance per parameter, until the goal is met most nearly.

    With `multiple_of`, channels go in chunks that leave a multiple, ranked by their mean importance.

    Args:
        blocks: of one kind.
        ranking: scores of each block.
        goal: units or parameters to remove.
        config: resolved.
        per_unit: the goal counts units, not parameters.
    """
    entries = sorted(
        (mean / block.unit_parameters, block.layer, order, size, block)
        for block in blocks
        for order, (size, mean) in enumerate(_chunks(block, ranking[block], _step(block, config)))
    )
    counts: Counts = dict.fromkeys(blocks, 0)
    for _, _, _, size, block in entries:
        cost = size if per_unit else size * block.unit_parameters
        if goal <= cost / 2:  # nearest, fewer on a tie
            break
        counts[block] += size
        goal -= cost
    return counts


def _chunks(block: Block, score: Tensor, step: int) -> Iterator[tuple[int, float]]:
    """Yields size and mean score of the chunks a block can give, least important first; one step always stays."""
    _legal(block, 0, step)  # refuses a step larger than the block
    values = torch.sort(score).values
    start = 0
    for size in ([block.total % step] if block.total % step else []) + [step] * (block.total // step - 1):
        yield size, float(values[start : start + size].mean())
        start += size
