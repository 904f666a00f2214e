"""SmoothGrad: first-order Taylor averaged over noisy passes (MoreauPruner, Section 5.1 and appendix E.2).

gradient      mean_i |∇f(w + z_i) ⊙ w|           f the mean loss over samples
importance    mean_i mean_n |∇f_n(w + z_i) ⊙ w|      f_n the loss on sample n; z_i is the same for all samples
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..config.settings import setting, settings
from .criterion import Cost, OfGradients
from .papers import MOREAU_PRUNER

if TYPE_CHECKING:
    from ..config import MoreauPrunerConfig
    from ..envelope import MovedWeight, Noise
    from .scoring_run import Scoring


@settings
class SmoothGrad(OfGradients):
    """Importances, not gradients, are averaged over the passes."""

    name = "smoothgrad"
    summary = "|g(w+z)⊙w| averaged over noisy passes"
    paper = MOREAU_PRUNER

    sigma: float = setting("σ of the noise", default=0.05, ge=0, symbol="σ")
    noise: Literal["relative", "absolute"] = setting("noise of σ·|w| per element, or of σ", default="relative")
    passes: int = setting("noisy passes", default=100, ge=1, le=10**6)

    def score(self, run: Scoring) -> None:
        """Emits |∇f(w + z) ⊙ w| / passes of every pass, or |∇f_n(w + z) ⊙ w| / (passes · N), of every sample too."""
        from ..models.progress import progress

        noise = run.noise()
        emit = lambda name, g, scale: run.emit_saliency(name, g, scale * (1 / self.passes))  # noqa: E731
        loss = [0.0]
        for i in progress(range(self.passes), "noisy passes", note=lambda: f"loss {loss[0]:.4f}"):
            for part in run.parts():
                loss[0] = run.gradient(part, emit, moved=_moved(noise, i), label=f"pass {i + 1}")

    @property
    def passes_each(self) -> int:
        """The noisy passes."""
        return self.passes

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """Several batches are summed up."""
        return self.cost_of(self.passes, config, noisy=True)


def _moved(noise: Noise, i: int) -> MovedWeight:
    return lambda name, w, out: noise.moved(w, None, name, 0, i, out=out)
