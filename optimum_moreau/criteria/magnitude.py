"""Magnitude: Σ|W|^p over the unit's weights."""

from __future__ import annotations

from .criterion import Criterion, ElementScores, Scoring

PAPER = "https://arxiv.org/abs/1608.08710"


def score_l1(run: Scoring) -> ElementScores:
    """Yields |W|."""
    return run.by_block(lambda name, w: w.abs())


def score_l2(run: Scoring) -> ElementScores:
    """Yields |W|²."""
    return run.by_block(lambda name, w: w.square())


MAGNITUDE = Criterion(name="magnitude", summary="Σ|W|, p = 1", paper=PAPER, score=score_l1)
MAGNITUDE_L2 = Criterion(name="magnitude-l2", summary="Σ|W|², p = 2", paper=PAPER, score=score_l2)
