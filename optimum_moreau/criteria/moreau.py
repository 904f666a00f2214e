"""MoreauPruner and MoreauPruner-GS: |∇g^ρ(w) ⊙ w| (paper, Eq. 9 and 11; Algorithm 1 as written).

MoreauPruner-GS soft-thresholds δ per channel after each step, by γη with the paper's absolute η. At the paper's
η = 5e-6 that threshold is inert: γη = 1e-9 lies orders of magnitude below ‖δ_S‖₂, and the kept units equal those of
`moreau` with the same ρ, γ. `eta_quantile` gives the threshold a scale instead: that quantile of the group norms of the
step. It is taken per matrix for `channel_group="row"`, per layer for `channel_group="unit"`. A threshold that acts
chooses channels worse on a real model (results/criteria.md), so the paper's is the default.

`relative_rho` gives ρ and γ a scale too, ρ_W = ρ̂·‖W‖_F/‖g_W‖_F of each matrix W and γ_W a fixed share of it
(envelope/moreau.py). The paper's absolute ρ moves a model's weights by as much as its gradients happen to be large. On
a real model it moves them hardly, and steps that move them more choose worse (results/criteria.md, "Moreau's own
scale").

With `reduction="importance"` Algorithm 1 runs on every sample alone, T steps each, and the importances are averaged:

    mean_n |δ_n/ρ_W ⊙ w|

δ_n starts at zero in the place of δ_(n−1), so that one δ is held. The noise of a step is the same for all samples, so a
sample's importance depends neither on the others nor on their order; a threshold is that of the sample's own δ_n, and a
relative ρ_W that of its own gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..config.settings import Share, setting, settings
from ..errors import ConfigError
from .criterion import Cost, OfGradients, batches_per_pass
from .papers import MOREAU_PRUNER

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import MoreauPrunerConfig
    from ..envelope.moreau import Threshold
    from .scoring_run import Scoring


@settings
class Moreau(OfGradients):
    """The gradient of the Moreau envelope (paper, Eq. 9); by default with the paper's steps."""

    name = "moreau"
    summary = "gradient of the Moreau envelope, Σ|∇g^ρ(w)⊙w|"
    paper = MOREAU_PRUNER
    paper_steps: ClassVar[Mapping[str, float]] = {"rho": 0.05, "step_size": 1e-3}
    by_row: ClassVar[bool] = True

    rho: float | None = setting("ρ of the envelope (paper, Eq. 6), absolute", default=None, gt=0, symbol="ρ")
    step_size: float | None = setting("γ of Algorithm 1, absolute", default=None, gt=0)
    relative_rho: float | None = setting(
        "instead of ρ: δ, where small, comes to about this share of each matrix (0.001)",
        default=None,
        gt=0,
        symbol="ρ, relative",
    )
    step_ratio: float | None = setting("γ/ρ, with the relative ρ (0.2)", default=None, gt=0, le=1)
    sigma: float | None = setting("σ of the Gaussian smoothing (0.05)", default=None, ge=0, symbol="σ")
    noise: Literal["relative", "absolute"] = setting(
        "noise of σ·|w| per element, or of σ (Theorem 1)", default="relative"
    )
    steps: int = setting("T of Algorithm 1", default=10, ge=1, le=10**6, symbol="T")
    noise_samples: int = setting("noise draws per step", default=1, ge=1, le=10**6)
    average_last: int | None = setting(
        "how many of the last iterates the score is the mean of (1)", default=None, ge=1, le=10**6
    )
    state_dtype: Literal["float32", "bfloat16"] = setting("in which δ is kept", default="float32")
    released: bool = setting(
        "the published code's update instead of Algorithm 1 (criteria/moreau_steps.py)", default=False
    )

    def __post_init__(self) -> None:
        relative = [name for name in ("relative_rho", "step_ratio") if getattr(self, name) is not None]
        absolute = [name for name in ("rho", "step_size", "eta") if getattr(self, name, None) is not None]
        if absolute and relative:
            give = "give relative_rho, step_ratio and eta_quantile, or rho, step_size and eta"
            raise ConfigError(f"{relative[0]}: is relative, and {absolute[0]} absolute; {give}")
        if not self.released:
            return
        if relative:
            raise ConfigError(f"released=True has absolute steps only; give rho, step_size instead of {relative[0]}")
        if self.noise_samples != 1 or not self.by_row:
            raise ConfigError(
                "released=True draws once per step and thresholds rows; leave noise_samples, channel_group"
            )
        if self.per_sample:
            raise ConfigError("released=True takes the gradient of the mean loss; leave reduction out")

    def score(self, run: Scoring) -> None:
        """Emits |δ/ρ_W ⊙ w| after T steps of Algorithm 1, or |δ_n/ρ_W ⊙ w| / N of every sample n."""
        from .moreau_steps import score

        score(run)

    @property
    def relative(self) -> bool:
        """Whether steps are given that are relative."""
        return self.relative_rho is not None or self.step_ratio is not None

    def resolved(self) -> Any:
        """Steps are the paper's, or where one of them is relative, small."""
        steps = {"relative_rho": 0.001, "step_ratio": 0.2} if self.relative else self.paper_steps
        found: dict[str, Any] = {"average_last": 5 if self.released else 1, "sigma": 0.05, **steps}
        return replace(self, **{name: value for name, value in found.items() if getattr(self, name) is None})

    def threshold(self) -> Threshold | None:
        """α of the group soft threshold, from the norms of the groups; or none."""
        return None

    @property
    def passes_each(self) -> int:
        """T times the draws."""
        return self.steps * self.noise_samples

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """T steps, each of all draws; a sum over passes, a sum of the last iterates, δ."""
        batches = 1 if self.per_sample else batches_per_pass(config)
        floats = (self.noise_samples * batches > 1) + ((self.average_last or 1) > 1)
        batch = 1 if self.per_sample else None
        return Cost(passes=self.passes_each, floats=floats, states=1, noisy=True, batch=batch)

    def resumable(self) -> bool:
        """Whether δ and the scales beside it are all that a step hands on to the next."""
        return not self.released and (self.average_last or 1) == 1 and not self.per_sample


@settings
class MoreauGS(Moreau):
    """MoreauPruner-GS: δ is soft-thresholded by groups (paper, Eq. 11)."""

    name = "moreau-gs"
    summary = "gradient of the Moreau envelope, group-sparse per channel"
    paper_steps: ClassVar[Mapping[str, float]] = {"rho": 0.2, "step_size": 2e-4}
    paper_eta: ClassVar[float] = 5e-6

    eta: float | None = setting(
        "η, absolute threshold of Algorithm 1; the groups' is γη (5e-6)", default=None, ge=0, symbol="η"
    )
    eta_quantile: Share | None = setting(
        "instead: the threshold is this quantile of the group norms (with relative steps 0.1)",
        default=None,
        symbol="η, as a quantile",
    )
    channel_group: Literal["row", "unit"] = setting(
        "groups of the threshold: an output row of a matrix, or the coupled unit", default="row"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta_quantile is not None and self.eta is not None:
            raise ConfigError("eta and eta_quantile are both given; give one of them")
        if self.eta_quantile is not None and self.released:
            raise ConfigError("released=True has an absolute threshold only; give eta instead of eta_quantile")

    @property
    def by_row(self) -> bool:  # type: ignore[override]
        """Whether groups lie within a matrix."""
        return self.channel_group == "row"

    def resolved(self) -> Any:
        """As for the envelope alone; η is the paper's, or with relative steps a quantile."""
        found = super().resolved()
        if found.eta is not None or found.eta_quantile is not None:
            return found
        return replace(found, eta_quantile=0.1) if found.relative else replace(found, eta=self.paper_eta)

    def threshold(self) -> Threshold | None:
        """γη, or the quantile of the norms."""
        if self.eta is None and self.eta_quantile is None:
            return None

        def threshold(norms: Tensor) -> Tensor | float:
            if self.eta is not None and self.step_size is not None:
                return self.step_size * self.eta  # α = γη
            return norms.quantile(self.eta_quantile or 0.0)

        return threshold
