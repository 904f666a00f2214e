"""What a compensation takes, from the model's config alone: passes, operations, memory.

Up to the first layer that loses something (the first of all, where hidden channels go) the two streams are the same,
and a layer runs once; so does one that goes whole. Every other layer runs for both streams up to each matrix that is
adjusted, o_proj (but in the first, where its attention loses nothing) and down_proj, and once more to go on:

    passes through its attention   2 + 2 + 2 = 6        through its MLP   2 + 2 = 4

Of N tokens in batches of t, hidden size d, s bytes per number, and a matrix of m rows that keeps k of w columns:

    operations   2N·(6·|W_attention| + 4·|W_mlp|)  +  2N·k·(k + m) for XᵀX and YᵀX
    fit          k³/3 for the Cholesky factor  +  2k²·m to solve  +  4k²·m for the errors, in float64
    streams      2·N·d·s, in CPU memory
    at work      the largest of
                 one layer's activations of a batch  +  t·(w + m)·s of the other stream's  +  8·k·(k + m) of the sums
                 t·(w + m)·s  +  4·t·(k + m)  +  8·k·(k + m)  +  4·k·max(k, m), while products are added
                 8·(2k² + 5·k·m) of the fit; 8·(4k² + 5·k·m) with an intercept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..compensation.silence import reached
from ..config import MoreauPrunerConfig
from ..config.quantities import words_for_bytes
from ..models.units import ModelShape, decoder_layers
from ..planning import PruningPlan
from .forwards import bytes_per_batch
from .scoring import HEAP, duration, memory, product_rate

_DOUBLE = 2  # an operation of float64, in operations of float32


@dataclass(frozen=True)
class CompensationEstimate:
    """What a compensation takes, each time.

    Attributes:
        device: type of the device that computes.
        step: its name.
        times: one for each round.
        windows: that it reads.
        attention_passes: passes of all windows through the attention of a layer, of all layers.
        mlp_passes: the same through MLPs.
        operations: floating-point operations of these passes and of XᵀX and YᵀX.
        fit_operations: of the fits and their errors, in float64.
        model_bytes: the loaded model.
        stream_bytes: the hidden states of both streams, in CPU memory.
        work_bytes: activations of one batch and the matrices of one fit, where the model is.
        peak_memory_bytes: where the model is, all together.
        seconds: of all times, on this machine, roughly; `None` where the device is not here.
    """

    device: str
    step: str
    times: int
    windows: int
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
            f"{self.step:<12}{passes}, {self.mlp_passes} through its MLP{each}, {duration(self.seconds)}",
            f"its memory  {parts}{streams}",
        ]


def estimate_compensation(
    skeleton: PreTrainedModel, shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig, device: str
) -> CompensationEstimate | None:
    """Estimates what a compensation takes; `None` where there is none. The arguments are those of `estimate_scoring`.

    The plan is what stays, as far as it is known; of earlier rounds it is taken to be the same.
    """
    if not config.compensation.fits:
        return None
    tokens = config.compensation.windows * config.sequence_length
    passes = {"attention": 0, "mlp": 0}
    operations, fits, work = 0.0, 0.0, 0
    windows = min(config.batch_size or config.compensation.windows, config.compensation.windows)
    batch = bytes_per_batch(skeleton, set(), windows, config.sequence_length)
    layers = decoder_layers(skeleton)
    for index, adjusted in reached(shape, plan).items():
        layer: Any = layers[index]
        for block in (block for block in shape.blocks if block.layer == index):
            behind = len(adjusted) if block.kind == "attention" else min(len(adjusted), 1)  # matrices it runs up to
            runs = 2 * behind + 2 if adjusted else 1
            passes[block.kind] += runs
            entries = sum(layer.get_submodule(name).weight.numel() for name in {cut.module for cut in block.cuts})
            operations += 2 * tokens * runs * entries
            if block in adjusted:
                rows, width = layer.get_submodule(block.reader.module).weight.shape
                rows = len(plan.hidden.kept) if plan.hidden is not None else rows
                kept = width // block.total * len(plan.kept(block).kept)
                operations += 2 * tokens * kept * (kept + rows)
                fits += kept**3 / 3 + 6 * kept**2 * rows  # to solve, and two errors
                at_once = windows * config.sequence_length
                work = max(work, _work(config, batch, at_once, rows, width, kept, skeleton.dtype.itemsize))
    streams = 2 * tokens * skeleton.config.hidden_size * skeleton.dtype.itemsize
    work = round(HEAP.get(device, 1.0) * work)
    rate = product_rate(min(windows * config.sequence_length, 1024), skeleton.dtype, device)
    return CompensationEstimate(
        device=device,
        step=config.compensation.name,
        times=config.rounds,
        windows=config.compensation.windows,
        attention_passes=passes["attention"],
        mlp_passes=passes["mlp"],
        operations=operations,
        fit_operations=fits,
        model_bytes=shape.bytes,
        stream_bytes=streams,
        work_bytes=work,
        peak_memory_bytes=shape.bytes + work + (streams if device == "cpu" else 0),
        seconds=None if rate is None else config.rounds * (operations + _DOUBLE * fits) / rate,
    )


def _work(config: MoreauPrunerConfig, batch: int, tokens: int, rows: int, width: int, kept: int, itemsize: int) -> int:
    """Bytes of the module's formulas, of one matrix."""
    flow, sums = tokens * (width + rows) * itemsize, 8 * kept * (kept + rows)
    products = flow + 4 * tokens * (kept + rows) + sums + 4 * kept * max(kept, rows)
    squares = 4 if config.compensation.fits_biases else 2
    return max(batch + flow + sums, products, 8 * (squares * kept**2 + 5 * kept * rows))
