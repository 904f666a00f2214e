"""Budgets: one file each, with its own settings: how a size is spread over layers."""

from .budget import Budget, Uniform, protects

__all__ = ["Budget", "Uniform", "protects"]
