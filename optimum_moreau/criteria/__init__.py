"""Criteria: one file each, model + calibration batches → element scores, yielded layer by layer."""

from .criterion import Criterion, ElementScores, Scoring

__all__ = ["Criterion", "ElementScores", "Scoring"]
