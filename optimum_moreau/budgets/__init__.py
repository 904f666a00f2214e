"""Budgets: how a size is spread over layers."""

from .spread import BUDGETS

__all__ = [
    "BUDGETS",
]
