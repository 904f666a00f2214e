"""Pruning in rounds: each scores what the one before has left.

Round k of N removes s_k of what is to go in all:      s_k = k/N        or      s_k = 1 − (1 − k/N)³
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..config import MoreauPrunerConfig
from ..models.units import ModelShape
from ..planning import PruningPlan
from ..scoring.scores import UnitScores

_GONE = -math.inf


def rounds(config: MoreauPrunerConfig, shape: ModelShape) -> list[MoreauPrunerConfig]:
    """The config of every round; the last is the given one."""
    n = config.rounds
    parts = [k / n if config.schedule == "linear" else 1 - (1 - k / n) ** 3 for k in range(1, n)]
    return [*(_scaled(config, part, shape) for part in parts), config]


def _scaled(config: MoreauPrunerConfig, part: float, shape: ModelShape) -> MoreauPrunerConfig:
    """The config by which a part of the size goes."""
    if config.pruning_ratio is not None:
        return replace(config, pruning_ratio=part * config.pruning_ratio)
    if isinstance(config.unit_ratio, tuple):
        return replace(config, unit_ratio=tuple(part * share for share in config.unit_ratio))
    if config.unit_ratio is not None:
        return replace(config, unit_ratio=part * config.unit_ratio)
    if config.target_parameters is not None:
        gone = part * (shape.parameters - config.target_parameters)
        return replace(config, target_parameters=round(shape.parameters - gone))
    assert config.target_bytes is not None  # resolved
    return replace(config, target_bytes=round(shape.bytes - part * (shape.bytes - config.target_bytes)))


def without_removed(scores: UnitScores, plan: PruningPlan, shape: ModelShape) -> UnitScores:
    """The scores, those of units that have gone below all others; a plan of such scores keeps none of them."""
    values = dict(scores.values)
    for block in shape.blocks:
        if block.where in values and plan.kept(block).removed:
            gone = torch.ones(block.total, dtype=torch.bool, device="cpu")
            gone[list(plan.kept(block).kept)] = False
            values[block.where] = values[block.where].masked_fill(gone, _GONE)
    return replace(scores, values=values)
