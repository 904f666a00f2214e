"""Criteria: one file each, model + calibration batches → element scores, emitted weight by weight."""

from .criterion import Cost, Criterion, OfGradients

__all__ = ["Cost", "Criterion", "OfGradients"]
