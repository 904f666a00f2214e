"""What a compensation is: how what stays of a matrix is adjusted, so that what it should give comes out.

Of a matrix, W are the kept columns, X what flows into them in the pruned model, T what should come out (aims.py), n
tokens of each; x̄, t̄ their means. With an intercept X and T are centred, and b = t̄ − W·x̄.

Nothing here, and nothing that a compensation's file imports at its top, needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..config.settings import setting, settings

if TYPE_CHECKING:
    from torch import Tensor

    from ..least_squares.moments import Moments

    # V `(out, kept)`, and b where there is one
    Fitted = tuple[Tensor, Tensor | None]

PER_COLUMN = 32  # tokens for every column that is solved for
FEW = 16  # such, below which more are asked for
FEWEST = 1 << 14  # tokens of any fit


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

    windows: int | None = setting(
        f"windows of calibration text that are fitted on ({PER_COLUMN} tokens for each column of the widest matrix, and"
        f" {FEWEST:,} at least)",
        default=None,
        affects="apply",
        was="compensation_samples",
        ge=2,
        le=10**8,
    )
    held_out: int = setting(
        "further windows, at most half as many, which nothing is fitted on: a compensation that raises their loss is"
        " taken back",
        default=16,
        affects="apply",
        ge=1,
        le=10**6,
    )
    target: Literal["stream", "matrix"] = setting(
        "what should come out: what brings the dense model's residual stream back, or the dense matrix's own output",
        default="stream",
        affects="apply",
    )

    @property
    def fits_biases(self) -> bool:
        """Whether o_proj and down_proj get a bias: as a setting `intercept` says, where there is one."""
        return getattr(self, "intercept", False)

    @property
    def damping(self) -> float | None:
        """λ, as a share of the mean of diag XᵀX, where columns are solved for: the setting `ridge`."""
        return getattr(self, "ridge", None)

    @property
    def apart(self) -> int:
        """Windows that are held out, of one whose windows are resolved."""
        return min(self.held_out, max((self.windows or 0) // 2, 1))

    def resolved(self, widest: int, sequence_length: int) -> Any:
        """Says how many windows are fitted on.

        Args:
            widest: columns of the model's widest o_proj or down_proj.
            sequence_length: tokens per window.
        """
        if self.windows is not None or not self.fits:
            return self
        return replace(self, windows=math.ceil(max(PER_COLUMN * widest, FEWEST) / sequence_length))

    @property
    def simpler(self) -> Compensation | None:
        """A step that is taken instead where it is better on windows that were held out; `None`: the cut alone is."""
        return None

    def candidates(self) -> Sequence[Compensation]:
        """Among which text that was not fitted decides; this one alone, where nothing is open."""
        return (self,)

    def taken(self, best: int) -> int:
        """Which candidate fits both folds, where that one was best from one to the other."""
        return best

    def fit(self, w: Tensor, moments: Moments) -> Fitted:
        """Adjusts a matrix, W `(out, kept)` in float64."""
        return w, None
