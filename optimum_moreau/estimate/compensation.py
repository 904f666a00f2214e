"""What a compensation takes, from the model's config alone: passes, operations, memory.

Up to the first layer that loses something (the first of all, where hidden channels go) the two streams are the same,
and a layer runs once; so does one that goes whole. Every other layer runs once for the dense stream. For the pruned one
it runs up to what flows into each matrix that is adjusted, o_proj (but in the first, where its attention loses nothing)
and down_proj; then down_proj alone goes on, or, where what it gives is not added (families.py), the layer once more:

    passes through its attention   1 + 2 = 3 (4)        through its MLP   1 + 1 = 2 (3)

Of N tokens in batches of t, N′ held out, hidden size d, s bytes per number, c candidates, and a matrix of m rows that
keeps k of w columns, o and u the parts of W that o_proj and down_proj are:

    operations   2N·(3·|W_attention| − |o| + 2·|W_mlp|)  +  2N·k·(k + m) for XᵀX and TᵀX
                 +  3·2N′·|W and head|, the loss of the dense, the cut and the adjusted model; where there is a simpler
                    step to compare with (`simpler`), that one's passes and fits and a fourth loss as well
    fit          (2c + 1)·(k³/3 for the Cholesky factor + 2k²·m to solve)  +  (2c + 2)·2k²·m for the errors, in float64
    streams      N·s·max(6d, 3d + w) in CPU memory: two streams and what they are to give, X of one down_proj
    at work      the largest of
                 one layer's activations of a batch  +  t·(w + m)·s of what flows  +  16·k·(k + m) of the sums
                 t·(w + m)·s  +  4·t·(k + m)  +  16·k·(k + m)  +  4·k·max(k, m), while products are added
                 8·(3k² + 6·k·m) of the fit; 8·(5k² + 8·k·m) with an intercept
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from ..compensation.silence import reached
from ..config import MoreauPrunerConfig
from ..config.quantities import words_for_bytes
from ..models.units import Block, ModelShape, decoder_layers
from ..planning import PruningPlan
from .forwards import bytes_per_batch
from .scoring import HEAP, duration, memory, product_rate
from .training import estimate_training

_DOUBLE = 2  # an operation of float64, in operations of float32


@dataclass(frozen=True)
class CompensationEstimate:
    """What a compensation takes, each time.

    Attributes:
        device: type of the device that computes.
        step: its name.
        times: one for each round.
        windows: that are fitted on.
        held_out: windows whose loss is measured.
        losses: how often it is.
        attention_passes: passes of all windows through the attention of a layer, of all layers.
        mlp_passes: the same through MLPs.
        operations: floating-point operations of these passes, of XᵀX and TᵀX, of the losses, and of training.
        fit_operations: of the fits and their errors, in float64.
        model_bytes: the loaded model.
        stream_bytes: the hidden states of both streams and what goes with them, in CPU memory.
        work_bytes: activations of one batch and the matrices of one fit, where the model is.
        peak_memory_bytes: where the model is, all together.
        seconds: of all times, on this machine, roughly; `None` where the device is not here.
    """

    device: str
    step: str
    times: int
    windows: int
    held_out: int
    losses: int
    attention_passes: int
    mlp_passes: int
    operations: float
    fit_operations: float
    model_bytes: int
    stream_bytes: int
    work_bytes: int
    peak_memory_bytes: int
    seconds: float | None

    @property
    def lines(self) -> list[str]:
        """For a reader."""
        passes = f"{self.attention_passes} passes of {self.windows} windows through a layer's attention"
        each = f", in each of {self.times} rounds" if self.times > 1 else ""
        here = self.peak_memory_bytes >= self.model_bytes + self.stream_bytes + self.work_bytes
        parts = memory(self.peak_memory_bytes, {"model": self.model_bytes, "at work": self.work_bytes})
        streams = f"{',' if here else '; on the CPU'} hidden states {words_for_bytes(self.stream_bytes)}"
        return [
            f"{self.step:<12}{passes}, {self.mlp_passes} through its MLP, the loss of {self.held_out} others"
            f" {self.losses} times{each}, {duration(self.seconds)}",
            f"its memory  {parts}{streams}",
        ]


def estimate_compensation(
    skeleton: PreTrainedModel, shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig, device: str
) -> CompensationEstimate | None:
    """Estimates what a compensation takes; `None` where there is none. The arguments are those of `estimate_scoring`.

    The plan is what stays, as far as it is known; of earlier rounds it is taken to be the same.
    """
    step = config.compensation
    if not step.fits:
        return None
    tokens = step.windows * config.sequence_length
    windows = min(config.batch_size or step.windows, step.windows)
    at_once = windows * config.sequence_length
    batch = bytes_per_batch(skeleton, set(), windows, config.sequence_length)
    sums, hidden = _summed(skeleton, shape, plan, config, at_once, batch), skeleton.config.hidden_size
    fitted, itemsize = 1 + int(step.simpler is not None), skeleton.dtype.itemsize
    operations = fitted * sums.operations
    if plan.removes:
        operations += (2 + fitted) * 2 * step.apart * config.sequence_length * sums.whole
    if training := estimate_training(skeleton, shape, plan, config):
        operations += training.operations
        sums.work = max(sums.work, training.block_bytes + 3 * batch * training.step_tokens // at_once)
    streams = tokens * max(6 * hidden, 3 * hidden + sums.widest) * itemsize
    work = round(HEAP.get(device, 1.0) * sums.work)
    rate = product_rate(min(at_once, 1024), skeleton.dtype, device)
    return CompensationEstimate(
        device=device,
        step=step.name,
        times=config.rounds,
        windows=step.windows,
        held_out=step.apart,
        losses=2 + fitted,
        attention_passes=fitted * sums.passes["attention"],
        mlp_passes=fitted * sums.passes["mlp"],
        operations=operations,
        fit_operations=fitted * sums.fits,
        model_bytes=shape.bytes,
        stream_bytes=streams,
        work_bytes=work,
        peak_memory_bytes=shape.bytes + work + (streams if device == "cpu" else 0),
        seconds=None if rate is None else config.rounds * (operations + _DOUBLE * fitted * sums.fits) / rate,
    )


@dataclass
class _Sums:
    """Over layers, as they are added."""

    whole: float  # entries of the head, and of all layers that were added
    passes: dict[str, int] = field(default_factory=lambda: {"attention": 0, "mlp": 0})
    operations: float = 0.0
    fits: float = 0.0
    widest: int = 0
    work: int = 0

    def add_passes(self, layer: Any, block: Block, adjusted: Sequence[Block], tokens: int, *, again: bool) -> None:
        """Of one block of a layer; some of its passes end before its last matrix."""
        once_more = int(again and bool(adjusted))
        entries = sum(layer.get_submodule(name).weight.numel() for name in {cut.module for cut in block.cuts})
        if block.kind == "attention":
            runs, stopped = 1 + len(adjusted) + once_more, int(block in adjusted)
        else:
            runs, stopped = 1 + int(bool(adjusted)) + once_more, once_more
        last = layer.get_submodule(block.reader.module).weight.numel()
        self.passes[block.kind] += runs
        self.operations += 2 * tokens * (runs * entries - stopped * last)
        self.whole += entries

    def add_fit(self, config: MoreauPrunerConfig, tokens: int, rows: int, width: int, kept: int) -> None:
        """Of one matrix."""
        self.operations += 2 * tokens * kept * (kept + rows)
        self.fits += _fit_operations(config, rows, kept)
        self.widest = max(self.widest, width)


def _summed(
    skeleton: PreTrainedModel,
    shape: ModelShape,
    plan: PruningPlan,
    config: MoreauPrunerConfig,
    at_once: int,
    batch: int,
) -> _Sums:
    """Over all layers; `batch` bytes are held while so many tokens pass at once."""
    head: Any = skeleton.get_output_embeddings()
    sums, adjusted = _Sums(head.weight.numel()), reached(shape, plan)
    tokens, itemsize = config.compensation.windows * config.sequence_length, skeleton.dtype.itemsize
    for block in shape.blocks if plan.removes else ():
        layer: Any = decoder_layers(skeleton)[block.layer or 0]
        own = adjusted[block.layer or 0]
        sums.add_passes(layer, block, own, tokens, again=not shape.family.adds)
        if block in own:
            rows, width = layer.get_submodule(block.reader.module).weight.shape
            rows = len(plan.hidden.kept) if plan.hidden is not None else rows
            kept = width // block.total * len(plan.kept(block).kept)
            sums.add_fit(config, tokens, rows, width, kept)
            sums.work = max(sums.work, _work(config, batch, at_once, rows, width, kept, itemsize))
    return sums


def _fit_operations(config: MoreauPrunerConfig, rows: int, kept: int) -> float:
    """Of one matrix, in float64."""
    times, each = len(config.compensation.candidates()), 2.0 * kept**2 * rows
    solved = kept**3 / 3 + each if config.compensation.ridged else each
    return (2 * times + 1) * solved + (2 * times + 2) * each


def _work(config: MoreauPrunerConfig, batch: int, tokens: int, rows: int, width: int, kept: int, itemsize: int) -> int:
    """Bytes of the module's formulas, of one matrix."""
    flow, sums = tokens * (width + rows) * itemsize, 16 * kept * (kept + rows)
    products = flow + 4 * tokens * (kept + rows) + sums + 4 * kept * max(kept, rows)
    squares, lines = (5, 8) if config.compensation.fits_biases else (3, 6)
    return max(batch + flow + sums, products, 8 * (squares * kept**2 + lines * kept * rows))
