"""Masks: zeros in place, unstructured or n:m, from the same element scores as units; and what improves them."""

from .refine import REFINEMENTS
from .scope import Foreseen, foresee_zeros
from .sparsify import sparsify
from .summary import SPARSITY_NAME, MatrixSparsity, SparsitySummary

__all__ = [
    "REFINEMENTS",
    "SPARSITY_NAME",
    "Foreseen",
    "MatrixSparsity",
    "SparsitySummary",
    "foresee_zeros",
    "sparsify",
]
