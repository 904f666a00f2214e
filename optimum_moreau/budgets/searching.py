"""A search: what is measured, in which order, and what is kept of it beside the scores."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..files.temporary import temporary_folder
from ..models.placement import input_device
from ..models.units import Block, decoder_layers
from ..scoring.profiles import Measuring, profile_name
from .extent import Extent
from .goals import Goal, goals, legal_counts
from .losses import allocate, unit_losses
from .neighbourhood import Neighbourhood
from .probing import RIDGE, Clock, Probe, estimated, measured, prepared
from .supernet import Supernet

if TYPE_CHECKING:
    from .search import Search

logger = logging.getLogger(__name__)

FOUND, GOAL, PATH = "search.found", "search.goal", "search.path"
_FEW = 3  # matrices of a block that a round keeps: of the plan, a step more, a step less


def ridge_of(run: Measuring) -> float | None:
    """λ of the rest of a block: the compensation's, where it solves for columns."""
    step = run.config.compensation
    return (step.damping or RIDGE) if step.ridged else None


def searched(run: Measuring, settings: Search, levels: Mapping[Block, Sequence[int]]) -> dict[str, Tensor]:
    """Measures each block alone and, where a goal is known, the neighbourhood of the plan; the model stays as it is.

    Args:
        run: on what.
        settings: how.
        levels: the numbers of units of each block that are measured gone.

    Returns:
        Profile name → float64 tensor on CPU: Δ of each block, and what was found, of which goal.

    Raises:
        NonFiniteError: a loss, or what flows into a matrix, is NaN or infinite.
    """
    wanted = goals(list(levels), run.shape, run.config)
    rounds = settings.rounds if wanted else 0
    clock = Clock(settings.minutes, input_device(run.model))
    extent = Extent.of(levels, len(decoder_layers(run.model)), rounds, settings.by)
    with temporary_folder("search") as folder:
        net = Supernet(run.model, run.scores, ridge_of(run), folder)
        probe = prepared(run, net, settings.objective, settings.windows, clock, extent)
        few = _FEW if rounds else 0
        kept = {block: max(len(own), few) if settings.by == "gradients" else few for block, own in levels.items()}
        _say(probe, extent, kept, folder)
        if settings.by == "passes":
            losses = measured(probe, levels, keep=bool(rounds))
        else:
            losses = estimated(probe, levels, seed=run.config.seed, keep=bool(rounds))
        found = {profile_name("search", block): _numbers(own) for block, own in losses.items()}
        logger.info("search: the first measure took %.1f min", clock.seconds / 60)
        if rounds:
            points = {block: list(zip(levels[block], own, strict=True)) for block, own in losses.items()}
            found |= _around(probe, wanted, points, settings)
            logger.info("search: %.1f min in all", clock.seconds / 60)
    return found


def _around(
    probe: Probe, wanted: Sequence[Goal], points: Mapping[Block, list[tuple[int, float]]], settings: Search
) -> dict[str, Tensor]:
    """What the neighbourhood comes to, as profiles."""
    legal = {block: legal_counts(block, probe.run.config) for block in points}
    points = {b: [(count, settings.times(b) * loss) for count, loss in own] for b, own in points.items()}
    dear = {b: 1 - 1 / settings.times(b) for b in points}  # of what is counted, what is not measured
    extra = {b: dear[b] * unit_losses(b.total, points[b]) for b in points if dear[b]}
    near = Neighbourhood(probe, wanted, legal, settings, extra)
    even: dict[Block, float] = {}
    alone: dict[Block, float] = {}
    for goal in wanted:
        size = sum(block.total * block.unit_parameters for block in goal.blocks)
        even |= {block: block.total * goal.parameters / size for block in goal.blocks}
        curves = [unit_losses(block.total, points[block]) for block in goal.blocks]
        alone |= allocate(goal.blocks, goal.parameters, curves, [max(legal[b]) / b.total for b in goal.blocks])
    middle = {block: (even[block] + alone[block]) / 2 for block in even}
    near.start({"by the first measure": alone, "the same share of every block": even, "half of both": middle})
    for number in range(1, settings.rounds + 1):
        if near.late(2.0):
            logger.info("search: no time for round %d of %d", number, settings.rounds)
            break
        near.round(number)
    found = {profile_name(FOUND, block): _numbers([count]) for block, count in near.plan.items()}
    asked = {f"{profile_name(GOAL)}.{goal.name}": _numbers([goal.parameters]) for goal in wanted}
    return found | asked | {profile_name(PATH): _numbers(near.path)}


def _numbers(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _say(probe: Probe, extent: Extent, kept: Mapping[Block, int], folder: Path) -> None:
    """Logs what the search will take: passes, minutes, room on disk for so many matrices of each block at once."""
    first, again = probe.foretold(extent)
    disk = 0
    for block, at_once in kept.items():
        weight = probe.net.reader(block).weight
        products = 4 * weight.shape[1] ** 2 if probe.net.ridge is not None and extent.rounds else 0
        disk += products + at_once * weight.element_size() * weight.numel()
    logger.info(
        "search: %d forward passes over %d windows, about %.1f min (%.1f of them the first measure)%s",
        extent.passes,
        probe.windows,
        (first + again) / 60,
        first / 60,
        f", and {disk / 2**30:.1f} GiB in {folder.parent}, of {shutil.disk_usage(folder).free / 2**30:.1f} free"
        if disk
        else "",
    )
