"""What a compensation is: how what stays of a matrix is adjusted, so that it gives what the whole matrix gave.

Of a matrix, W are the kept columns, X what flows into them in the pruned model, Y what the whole matrix gives in the
dense one, n tokens of each; x̄, ȳ their means. With an intercept X and Y are centred, and b = ȳ − W·x̄.

Nothing here, and nothing that a compensation's file imports at its top, needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..config.settings import setting, settings

if TYPE_CHECKING:
    from torch import Tensor

    from .moments import Moments

    # V `(out, kept)`, and b where there is one
    Fitted = tuple[Tensor, Tensor | None]


@settings
class Compensation:
    """One step.

    Attributes:
        name: its name in the registry.
        summary: one line for lists and cards.
        paper: link to the source.
        fits: there is something to fit, on text.
        ridged: it solves for the columns of a matrix, so that text may be too short.
        keeps_zeros: a weight that is zero stays so.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    fits: ClassVar[bool] = True
    ridged: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = True

    windows: int = setting(
        "windows of calibration text that this reads",
        default=128,
        affects="apply",
        was="compensation_samples",
        ge=1,
        le=10**8,
    )

    @property
    def fits_biases(self) -> bool:
        """Whether o_proj and down_proj get a bias: as a setting `intercept` says, where there is one."""
        return getattr(self, "intercept", False)

    @property
    def damping(self) -> float | None:
        """λ, as a share of the mean of diag XᵀX, where columns are solved for: the setting `ridge`."""
        return getattr(self, "ridge", None)

    def fit(self, w: Tensor, moments: Moments) -> Fitted:
        """Adjusts a matrix, W `(out, kept)` in float64."""
        return w, None
