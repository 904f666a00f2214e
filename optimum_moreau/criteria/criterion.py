"""What a criterion is, and what it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from ..config import MoreauPrunerConfig
from ..envelope import Engine, Micro, MovedWeight, Noise, OnGradient
from ..models.stream import Inputs, LayerStream
from ..models.units import LAYERS, Block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Takes the scores of one weight, float32 `(out, in)`; what comes for the same weight again is added.
Emit = Callable[[str, Tensor], None]
# The scores of one weight: its name, W in float32 `(out, in)`, what flows into its layer, and the resolved config.
Elements = Callable[[str, Tensor, Inputs, MoreauPrunerConfig], Tensor]


@dataclass(frozen=True)
class Part:
    """What makes one gradient, and how much its importance weighs in the score.

    Attributes:
        batches: token ids `(windows, length)`, with their shares of the gradient.
        weight: of the importance.
        everywhere: the windows of all processes make the gradient; otherwise it is one process's own.
    """

    batches: list[tuple[Tensor, float]]
    weight: float
    everywhere: bool


@dataclass(frozen=True)
class Scoring:
    """One scoring run.

    Attributes:
        model: in `scoring_mode`.
        blocks: whose units are scored.
        batches: the calibration windows of this process, token ids `(windows, length)`.
        windows: number of windows, of all processes.
        config: resolved.
        emit: takes the scores.
        checkpoint: folder that keeps every step of a long run, so that it can be resumed.
        run: what identifies the run.
        sides: the matrices that count for a unit, as the criterion says.
    """

    model: PreTrainedModel
    blocks: tuple[Block, ...]
    batches: list[Tensor]
    windows: int
    config: MoreauPrunerConfig
    emit: Emit
    checkpoint: Path | None = None
    run: str = ""
    sides: tuple[str, ...] = ("out", "in")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameter names of the weights in scope, each once."""
        found = [name for block in self.blocks for cut, name in block.weight_names().items() if cut.side in self.sides]
        return tuple(dict.fromkeys(found))

    @cached_property
    def engine(self) -> Engine:
        """Gradients of the calibration loss with respect to the weights in scope."""
        return Engine(self.model, self.names)

    def parts(self) -> Iterator[Part]:
        """What makes each gradient, as `reduction` says, f_n the loss on sample n of N.

        gradient      |∇(1/N Σ_n f_n) ⊙ w|      one part: all windows, batch by batch
        importance    1/N Σ_n |∇f_n ⊙ w|        a part for each of this process's windows
        """
        if not self.config.per_sample:
            yield Part([(batch, len(batch) / self.windows) for batch in self.batches], 1.0, everywhere=True)
            return
        for one in self.samples():
            yield Part([(one, 1.0)], 1 / self.windows, everywhere=False)

    def samples(self) -> Iterator[Tensor]:
        """This process's windows one by one, `(1, length)`, whatever the batch size, with a progress bar."""
        windows = [one for batch in self.batches for one in batch.split(1)]
        yield from tqdm(windows, "windows", leave=False, disable=self.engine.hides_progress)

    def gradient(
        self, part: Part, on_gradient: OnGradient, *, moved: MovedWeight | None = None, label: str = ""
    ) -> float:
        """Gives a part's gradient to `on_gradient`, with a factor that is the part's weight too; returns the loss.

        Args:
            part: of `parts`.
            on_gradient: is given g and a factor, once for each weight; it may not keep g.
            moved: the weights it is taken at; `None`: w.
            label: where the computation stands, for messages; empty: the criterion's name.
        """
        micros = [Micro(batch, share, moved, label or self.config.criterion) for batch, share in part.batches]
        return self.engine.run(
            micros, lambda name, g, scale: on_gradient(name, g, scale * part.weight), everywhere=part.everywhere
        )

    def noise(self) -> Noise:
        """The smoothing noise that the config asks for."""
        c = self.config
        assert c.sigma is not None  # resolved
        return Noise(c.sigma, relative=c.noise == "relative", seed=c.seed)

    def by_weight(self, score: Callable[[str, Tensor], Tensor]) -> None:
        """Emits `score(name, w)` of each weight in scope, one after the other; w comes in float32."""
        for name in self.names:
            self.emit(name, score(name, self.engine.weight(name).float()))

    def by_inputs(self, what: tuple[str, ...], elements: Elements) -> None:
        """Emits `elements` of each weight in scope from the statistics `what` of its inputs; the model stays dense."""
        for streamed in LayerStream(self.model, self.batches, self.windows):
            prefix = f"{LAYERS}{streamed.index}."
            modules = {name: name.removeprefix(prefix).removesuffix(".weight") for name in self.names}
            inside = {name: module for name, module in modules.items() if name.startswith(prefix)}
            found = streamed.gather(list(inside.values()), what)
            for name, module in inside.items():
                self.emit(name, elements(name, self.engine.weight(name).float(), found[module], self.config))

    def emit_saliency(self, name: str, g: Tensor, scale: float = 1.0) -> None:
        """Emits |g ⊙ w| (paper, Eq. 3) for the gradient `scale`·`g`; in float32: the product underflows in float16."""
        self.emit(name, (g.float() * self.engine.weight(name)).abs_().mul_(abs(scale)))


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


@dataclass(frozen=True)
class Criterion:
    """How a weight is scored.

    Attributes:
        name: its name in the registry.
        summary: one line for lists and cards.
        paper: link to the source.
        score: emits the element scores of one run, weight by weight.
        needs: `gradients`, `activations`, or nothing.
        defaults: the criterion's own config fields with their defaults; `None` stands for "off".
        signed: elements carry a sign, so that the absolute value is taken of their sum (`absolute_each`: of which).
        partial: whether, with several processes, each emits the scores of its own samples, to be added up.
        cost: of a run with a resolved config.
        resumable: whether such a run can keep its steps, and go on from them.
        statistics: what `elements` reads of a layer's inputs (models/stream.py).
        elements: scores one weight from its layer's inputs alone, so that a mask can be made layer by layer.
        mask_group: weights that a mask compares by default: each output `row`, or the whole matrix (`layer`).
        sides: the matrices that count for a unit: those it owns rows of (`out`), columns of (`in`), or both.
    """

    name: str
    summary: str
    paper: str
    score: Callable[[Scoring], None]
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    signed: bool = False
    partial: Callable[[MoreauPrunerConfig], bool] = lambda config: False
    cost: Callable[[MoreauPrunerConfig], Cost] = lambda config: Cost()
    resumable: Callable[[MoreauPrunerConfig], bool] = lambda config: False
    statistics: tuple[str, ...] = ()
    elements: Elements | None = None
    mask_group: str = "row"
    sides: tuple[str, ...] = ("out", "in")

    def absolute_each(self, config: MoreauPrunerConfig) -> bool:
        """Whether elements have signs, and the absolute value is taken of the sum over one sample's, sample by sample.

        Each emission is one sample's then; otherwise it is taken of the sum over all that is emitted.
        """
        return self.signed and config.per_sample


def scored_by_inputs(elements: Elements, statistics: tuple[str, ...], **described: Any) -> Criterion:
    """A criterion that scores each weight from what flows into its layer; `described` are the other fields."""

    def score(run: Scoring) -> None:
        run.by_inputs(statistics, elements)

    return Criterion(score=score, needs=("activations",), statistics=statistics, elements=elements, **described)
