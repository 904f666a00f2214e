"""LoRAPrune: weights as low-rank adapters in training feel them, without a gradient of the weights themselves.

Every matrix W in scope computes with W + s·BA, B of zeros at first, and T steps of AdamW train A and B on the
calibration text. Each step changes BA by about −ĝ, which stands for the gradient of W:

    ĝ = ∇B·A + B·∇A − ∇B·∇A          I = |ĝ ⊙ (W + s·BA)|          Ḡ ← λ·Ḡ + (1 − λ)·I/‖I_units‖₂

I_units is the vector of the units' sums of I in this matrix, so that every matrix of a unit counts alike. Every tenth
step the units of the lowest Ḡ are silenced, p(t) of each block's, and learn no more; their Ḡ fades, so they stay last:

    p(t) = p·(1 − (1 − t/T)³)

p is the share of the units that is to go, where every layer gives the same share of its heads and channels. With
another budget, other targets, and of masks of single weights, nothing is silenced on the way. The model itself is never
changed, and the adapters are dropped: only the score is taken from them. The published code leaves the first tenth of
the layers and the last one alone; here the scope says so, and its default does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..config.settings import Share, setting, settings
from .criterion import Cost, Criterion
from .papers import LORA_PRUNE

if TYPE_CHECKING:
    from ..config import MoreauPrunerConfig
    from .scoring_run import Scoring


@settings
class LoRA(Criterion):
    """LoRAPrune's guided gradients."""

    name = "lora"
    summary = "|ĝ⊙(W+BA)|, ĝ from adapters in training, units silenced step by step (LoRAPrune)"
    paper = LORA_PRUNE
    needs = ("gradients",)

    steps: int = setting("T, of the adapters' training", default=100, ge=1, le=10**6, symbol="T")
    rank: int = setting("r of the adapters", default=8, was="lora_rank", ge=1, le=2**16)
    learning_rate: float = setting("of their training", default=1e-4, gt=0)
    decay: Share = setting("λ: how much of the score before stays at each step", default=0.9)

    def score(self, run: Scoring) -> None:
        """Emits Ḡ after T steps."""
        from .lora_adapters import score

        score(run)

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """T batches, and Ḡ."""
        batch = config.batch_size or config.calibration_samples
        return Cost(passes=math.ceil(self.steps * batch / config.calibration_samples), floats=1)
