"""What a run will take, from config.json alone: memory and time of every step."""

from ..models.skeleton import skeleton_of
from .compensation import CompensationEstimate, estimate_compensation
from .scoring import estimate_scoring, too_little_memory

__all__ = [
    "CompensationEstimate",
    "estimate_compensation",
    "estimate_scoring",
    "skeleton_of",
    "too_little_memory",
]
