"""One scoring run: what a criterion is given, and what it does with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..envelope import GradientEngine, Micro, MovedWeight, Noise, OnGradient
from ..models.progress import progress
from ..models.stream import Inputs, LayerStream
from ..models.units import LAYERS, Block

# Takes the scores of one weight, float32 `(out, in)`; what comes for the same weight again is added.
Emit = Callable[[str, Tensor], None]
# The scores of one weight: its name, W in float32 `(out, in)`, and what flows into its layer.
Elements = Callable[[str, Tensor, Inputs], Tensor]


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
    def engine(self) -> GradientEngine:
        """Gradients of the calibration loss with respect to the weights in scope."""
        return GradientEngine(self.model, self.names)

    def parts(self) -> Iterator[Part]:
        """What makes each gradient, as `reduction` says, f_n the loss on sample n of N.

        gradient      |∇(1/N Σ_n f_n) ⊙ w|      one part: all windows, batch by batch
        importance    1/N Σ_n |∇f_n ⊙ w|        a part for each of this process's windows
        """
        if not self.config.criterion.per_sample:
            yield Part([(batch, len(batch) / self.windows) for batch in self.batches], 1.0, everywhere=True)
            return
        for one in self.samples():
            yield Part([(one, 1.0)], 1 / self.windows, everywhere=False)

    def samples(self) -> Iterator[Tensor]:
        """This process's windows one by one, `(1, length)`, whatever the batch size, with a progress bar."""
        windows = [one for batch in self.batches for one in batch.split(1)]
        yield from progress(windows, "scoring, windows")

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
        micros = [Micro(batch, share, moved, label or self.config.criterion.name) for batch, share in part.batches]
        return self.engine.run(
            micros, lambda name, g, scale: on_gradient(name, g, scale * part.weight), everywhere=part.everywhere
        )

    def noise(self) -> Noise:
        """The smoothing noise that the criterion asks for."""
        criterion = self.config.criterion
        return Noise(criterion.sigma, relative=criterion.noise == "relative", seed=self.config.seed)

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
                self.emit(name, elements(name, self.engine.weight(name).float(), found[module]))

    def emit_saliency(self, name: str, g: Tensor, scale: float = 1.0) -> None:
        """Emits |g ⊙ w| (paper, Eq. 3) for the gradient `scale`·`g`; in float32: the product underflows in float16."""
        self.emit(name, (g.float() * self.engine.weight(name)).abs_().mul_(abs(scale)))
