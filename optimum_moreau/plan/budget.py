"""Unit scores + targets → how many units, and which, each block gives up.

Counting rules (DESIGN.md, Conventions): a block of n units at unit ratio r gives the whole number nearest to n·r, fewer
on a tie, never all. For a share of the parameters, attention units are rounded first and MLP channels take up the
difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        A plan without base model, fingerprint and calibration, which the caller knows.

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
    return PruningPlan(shape.family.model_type, layers, config=config.to_dict())


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


def _legal(block: Block, removed: int, multiple_of: int) -> int:
    """The legal count nearest to `removed`: never all, channels kept as a multiple."""
    removed = min(removed, block.total - 1)
    if block.kind == "attention" or multiple_of == 1 or removed <= 0:
        return max(removed, 0)
    kept = max(multiple_of, multiple_of * round((block.total - removed) / multiple_of))
    return max(block.total - kept, 0)


def _most(block: Block, multiple_of: int) -> int:
    return _legal(block, block.total - 1, multiple_of)


def _by_unit_ratio(blocks: Sequence[Block], ranking: Ranking, config: MoreauPrunerConfig) -> Counts:
    given = config.unit_ratio
    assert given is not None  # the caller's branch
    ratio = given if isinstance(given, tuple) else (given, given)
    removed: Counts = {}
    for kind, share in zip(("attention", "mlp"), ratio, strict=True):
        of_kind = [block for block in blocks if block.kind == kind]
        if config.budget == "global":
            units = nearest_fewer(sum(block.total for block in of_kind) * share)
            removed |= _global_counts(of_kind, ranking, units=units, multiple_of=config.multiple_of)
        else:
            for block in of_kind:
                removed[block] = _legal(block, nearest_fewer(block.total * share), config.multiple_of)
    return removed


def _by_parameters(
    blocks: Sequence[Block], ranking: Ranking, ratio: float, parameters: int, config: MoreauPrunerConfig
) -> Counts:
    target = ratio * parameters
    attention = [block for block in blocks if block.kind == "attention"]
    mlp = [block for block in blocks if block.kind == "mlp"]
    most = sum(_most(block, config.multiple_of) * block.unit_parameters for block in blocks)
    # rounding may miss half a unit of the largest block
    slack = max((block.unit_parameters for block in mlp or attention), default=0) / 2
    if target > most + slack:
        raise PlanError(
            f"pruning_ratio {ratio:g} cannot be reached in this scope, which reaches from 0 to"
            f" {math.floor(1e4 * most / parameters) / 1e4:.4f}; widen attention_layers, mlp_layers or targets"
        )
    if not target:
        return {}
    # One unit ratio for every block in scope; attention is rounded first …
    share = min(target / sum(block.total * block.unit_parameters for block in blocks), 1.0)
    removed = _attention_counts(attention, ranking, share, target, sum(_cost(mlp, config)), config)
    # … and the channels take up the difference.
    rest = target - sum(count * block.unit_parameters for block, count in removed.items())
    if config.budget == "global":
        return removed | _global_counts(mlp, ranking, parameters=max(rest, 0.0), multiple_of=config.multiple_of)
    share = max(rest, 0.0) / max(sum(block.total * block.unit_parameters for block in mlp), 1)
    return removed | {b: _legal(b, nearest_fewer(b.total * share), config.multiple_of) for b in mlp}


def _cost(blocks: Sequence[Block], config: MoreauPrunerConfig) -> list[int]:
    return [_most(block, config.multiple_of) * block.unit_parameters for block in blocks]


def _attention_counts(
    blocks: Sequence[Block],
    ranking: Ranking,
    share: float,
    target: float,
    mlp_most: int,
    config: MoreauPrunerConfig,
) -> Counts:
    """Rounds attention units at `share`, and up where the channels alone could not take up the difference."""
    while True:
        if config.budget == "global":
            units = nearest_fewer(sum(block.total for block in blocks) * share)
            counts = _global_counts(blocks, ranking, units=units, multiple_of=1)
        else:
            counts = {block: min(nearest_fewer(block.total * share), block.total - 1) for block in blocks}
        gone = sum(count * block.unit_parameters for block, count in counts.items())
        if share >= 1 or target - gone <= mlp_most or not mlp_most:
            return counts
        share = min(share + 0.5 / max(block.total for block in blocks), 1.0) if blocks else 1.0


def _global_counts(
    blocks: Sequence[Block],
    ranking: Ranking,
    *,
    units: int | None = None,
    parameters: float | None = None,
    multiple_of: int,
) -> Counts:
    """Takes units off the bottom of one ranking by importance per parameter, up to a count or a parameter total."""
    entries = sorted(
        (value / block.unit_parameters, block.layer, order, block)
        for block in blocks
        for order, value in enumerate(sorted(ranking[block].tolist()))
    )
    counts: Counts = dict.fromkeys(blocks, 0)
    left = float(units) if units is not None else float(parameters or 0)
    for _, _, _, block in entries:
        step = 1 if units is not None else block.unit_parameters
        if left < step / 2 or (left == step / 2):  # nearest, fewer on a tie
            break
        if counts[block] < block.total - 1:  # never all
            counts[block] += 1
            left -= step
    return {block: _legal(block, count, multiple_of) for block, count in counts.items()}
