"""Criteria: one file each, model + calibration batches → element scores, yielded layer by layer."""

from .criterion import Cost, Criterion, ElementScores, Scoring

__all__ = ["Cost", "Criterion", "ElementScores", "Scoring"]
