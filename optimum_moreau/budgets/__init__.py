"""Budgets: one file each, with its own settings: how a size is spread over layers."""

from .budget import Budget, protects

__all__ = ["Budget", "protects"]
