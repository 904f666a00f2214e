"""Budgets: one file each, with its own settings: how a size is spread over layers."""

from .budget import Budget, protects
from .uniform import Uniform

__all__ = ["Budget", "Uniform", "protects"]
