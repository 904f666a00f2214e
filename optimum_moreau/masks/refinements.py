"""Names of what refines a mask (refine.py); known without torch."""

from __future__ import annotations

from ..criteria.papers import DSNOT_PAPER, SYMMETRIC

# Name → what it does, and its source.
REFINEMENTS = {
    "dsnot": ("weights change places, so that a row keeps its mean output", DSNOT_PAPER),
    "r2-dsnot": ("the same, what goes chosen by relative importance", SYMMETRIC),
}
