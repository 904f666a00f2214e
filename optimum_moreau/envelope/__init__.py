"""Gradient of the Gaussian-smoothed loss and of its Moreau envelope (paper: MoreauPruner, Section 4, Algorithm 1).

    smoothed loss     g_σ(w) = E_z f(w + z),  z ~ N(0, σ²)                          (Definition 1)
    Moreau envelope   g_σ^ρ(w) = inf_v g_σ(v) + ‖v − w‖² / (2ρ)                     (Eq. 6)
    its gradient      ∇g_σ^ρ(w) = −(v* − w) / ρ                                     (Eq. 10)

v* is found by gradient steps on δ = v − w, so that w itself is never overwritten. Nothing here knows of pruning.
"""

from .engine import FLOAT16_SCALE, GradientEngine, Micro, MovedWeight, OnGradient, next_token_loss, scoring_mode
from .moreau import MoreauRun, proximal_step, shrink
from .noise import Noise
from .reference import LossGradient, Tensors, smoothed_gradient
from .state import State

__all__ = [
    "FLOAT16_SCALE",
    "GradientEngine",
    "LossGradient",
    "Micro",
    "MoreauRun",
    "MovedWeight",
    "Noise",
    "OnGradient",
    "State",
    "Tensors",
    "next_token_loss",
    "proximal_step",
    "scoring_mode",
    "shrink",
    "smoothed_gradient",
]
