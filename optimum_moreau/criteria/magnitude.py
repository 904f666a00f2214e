"""Magnitude: Σ|W|^p over the unit's weights."""

from __future__ import annotations

from .criterion import Criterion, Scoring
from .papers import FILTER_PRUNING


def score_l1(run: Scoring) -> None:
    """Emits |W|."""
    run.by_weight(lambda name, w: w.abs())


def score_l2(run: Scoring) -> None:
    """Emits |W|²."""
    run.by_weight(lambda name, w: w.square())


MAGNITUDE = Criterion(
    name="magnitude",
    summary="Σ|W|, p = 1",
    paper=FILTER_PRUNING,
    score=score_l1,
    mask_group="layer",
    elements=lambda name, w, inputs, config: w.abs(),
)
MAGNITUDE_L2 = Criterion(
    name="magnitude-l2",
    summary="Σ|W|², p = 2",
    paper=FILTER_PRUNING,
    score=score_l2,
    mask_group="layer",
    elements=lambda name, w, inputs, config: w.square(),
)
