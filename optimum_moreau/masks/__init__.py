"""Masks: zeros in place, unstructured or n:m, from the same element scores as units; and what improves them."""

from ..criteria.papers import DSNOT_PAPER, SYMMETRIC

# Name → what a refinement (refine.py) does, and its source.
REFINEMENTS = {
    "dsnot": ("weights change places, so that a row keeps its mean output", DSNOT_PAPER),
    "r2-dsnot": ("the same, what goes chosen by relative importance", SYMMETRIC),
}
