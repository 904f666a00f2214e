"""Compensations: one file each, with its own settings: what survives a cut gives what the whole gave, untrained."""

from .step import Compensation

__all__ = ["Compensation"]
