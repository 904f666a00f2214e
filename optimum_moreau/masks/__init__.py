"""Masks: zeros in place, unstructured or n:m, from the same element scores as units; and what improves them."""

from .refinements import REFINEMENTS

__all__ = ["REFINEMENTS"]
