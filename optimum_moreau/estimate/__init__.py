"""What a run will take, from config.json alone: memory and time of every step."""

from ..models.buffers import skeleton_of
from .compensation import CompensationEstimate, estimate_compensation
from .pruning import Estimate, estimate_pruning
from .scoring import ScoringEstimate, estimate_scoring, too_little_memory

__all__ = [
    "CompensationEstimate",
    "Estimate",
    "ScoringEstimate",
    "estimate_compensation",
    "estimate_pruning",
    "estimate_scoring",
    "skeleton_of",
    "too_little_memory",
]
