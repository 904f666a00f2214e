"""What a criterion is: how a weight is scored, with the settings that decide it.

Nothing here, and nothing that a criterion's file imports at its top, needs torch: names, settings and help are known
without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..config.settings import setting, settings

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import MoreauPrunerConfig
    from ..models.stream import Inputs
    from .scoring_run import Scoring


@dataclass(frozen=True)
class Cost:
    """What a scoring run takes, for estimates made before it.

    Attributes:
        passes: forward and backward passes over the calibration text.
        floats: float32 numbers held per weight in scope while a pass runs.
        states: numbers in `state_dtype` held per weight in scope, where `offload` says.
        noisy: every batch of every pass draws noise for every weight in scope.
        batch: windows that pass at once; `None`: the config's.
    """

    passes: int = 0
    floats: float = 0
    states: float = 0
    noisy: bool = False
    batch: int | None = None


def batches_per_pass(config: MoreauPrunerConfig) -> int:
    """Number of batches that make one gradient; more than one are summed up in float32."""
    return math.ceil(config.calibration_samples / (config.batch_size or config.calibration_samples))


@settings
class Criterion:
    """How a weight is scored, and what every criterion can be told.

    Attributes:
        name: its name in the registry.
        summary: one line for lists and cards.
        paper: link to the source.
        needs: `gradients`, `activations`, or nothing.
        signed: elements carry a sign, so that the absolute value is taken of their sum (`absolute_each`: of which).
        statistics: what `elements` reads of a layer's inputs (models/stream.py).
        by_layer: `elements` scores a weight from its layer's inputs alone, so that a mask can be made layer by layer.
        mask_group: weights that a mask compares by default: each output `row`, or the whole matrix (`layer`).
        masks: it scores single weights, too, so that a mask can be made of it.
        sides: the matrices that count for a unit: those it owns rows of (`out`), columns of (`in`), or both.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    signed: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ()
    by_layer: ClassVar[bool] = False
    mask_group: ClassVar[str] = "row"
    masks: ClassVar[bool] = True
    sides: ClassVar[tuple[str, ...]] = ("out", "in")

    aggregation: Literal["sum", "mean", "max", "prod"] = setting(
        "how the coupled matrices of a unit combine (paper, Eq. 5)", default="sum", affects="scores"
    )
    layers: Literal["sum", "block-influence"] = setting(
        "what a whole layer is worth: the sum of its units, or 1 − mean cosine similarity of its input and output",
        default="sum",
        was="layer_criterion",
    )

    def score(self, run: Scoring) -> None:
        """Emits the element scores of one run, weight by weight."""
        elements = lambda name, w, inputs=None: self.elements(name, w, inputs, run.config.seed)  # noqa: E731
        if self.statistics:
            run.by_inputs(self.statistics, elements)
        else:
            run.by_weight(elements)

    def elements(self, name: str, w: Tensor, inputs: Inputs, seed: int) -> Tensor:
        """Scores one weight W, float32 `(out, in)`, from its layer's inputs alone; only where `by_layer`."""
        raise NotImplementedError

    def partial(self) -> bool:
        """Whether, with several processes, each emits the scores of its own samples, to be added up."""
        return self.per_sample

    def cost(self, config: MoreauPrunerConfig) -> Cost:
        """What a run with a resolved config takes."""
        return Cost()

    def resumable(self) -> bool:
        """Whether a run can keep its steps, and go on from them."""
        return False

    def resolved(self) -> Any:
        """The criterion with every setting that was left open."""
        return self

    @property
    def per_sample(self) -> bool:
        """Whether each sample's importance is averaged, and not its gradient."""
        return False

    @property
    def passes_each(self) -> int:
        """Forward and backward passes over each window."""
        return 1

    def absolute_each(self) -> bool:
        """Whether the absolute value of signed elements is taken of each emission, one sample's sum, and not of all."""
        return self.signed and self.per_sample


@settings
class OfGradients(Criterion):
    """A criterion that reads gradients, of the mean loss or of every sample."""

    needs: ClassVar[tuple[str, ...]] = ("gradients",)

    reduction: Literal["gradient", "importance"] = setting(
        "what is averaged over the samples: the gradient (the paper), or each sample's importance", default="gradient"
    )

    @property
    def per_sample(self) -> bool:
        """As `reduction` says."""
        return self.reduction == "importance"

    def cost_of(self, passes: int, config: MoreauPrunerConfig, **more: Any) -> Cost:
        """Of passes that are emitted one by one; several batches of one are summed up in float32."""
        if self.per_sample:
            return Cost(passes=passes, batch=1, **more)
        return Cost(passes=passes, floats=int(batches_per_pass(config) > 1), **more)
