"""Train: after its refit a block, attention or MLP with its norms, learns to give the dense stream from the pruned one.

No labels, and one block at a time (blocks.py). 'A Free Lunch in LLM Compression' (arXiv 2510.14444) finds that what is
fitted so should hold a nonlinearity: a whole block, not one matrix.
"""

from __future__ import annotations

from ..config.settings import setting, settings, settings_of
from .refit import Refit


@settings
class Train(Refit):
    """The refit, and then Adam on all that a block has."""

    name = "train"
    summary = "ridge least squares, and then training of each block towards the dense model's residual stream"

    steps: int = setting("of Adam, for each block", default=200, affects="apply", ge=0, le=10**6)
    learning_rate: float = setting(
        "what a step changes a weight by, as a share of the root mean square of the block's matrices; it rises in the"
        " first tenth of the steps, and then falls to zero",
        default=3e-3,
        affects="apply",
        gt=0,
        lt=1,
    )
    batch_tokens: int = setting("tokens of a step", default=1024, affects="apply", ge=1, le=10**8)
    patience: int = setting(
        "a block's training ends once its error on text that is not trained on has not fallen for so many steps",
        default=60,
        affects="apply",
        ge=1,
        le=10**6,
    )

    @property
    def simpler(self) -> Refit:
        """The refit alone."""
        return Refit(**{one.name: getattr(self, one.name) for one in settings_of(Refit)})
