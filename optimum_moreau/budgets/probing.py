"""The first measure of a search: what each block costs alone, at some numbers of units gone.

Two streams of hidden states of the dense model go through the layers: one of all calibration windows, of which XᵀX is
gathered where the rest of a block is adjusted (supernet.py), and one of the windows that are measured on. From the
block's layer on the model computes anew for each number of units.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distributed import add_up, is_distributed, processes
from ..models.loss import prefix_length
from ..models.placement import input_device
from ..models.progress import progress
from ..models.stream import LayerStream, StreamedLayer
from ..models.undisturbed import plain_outputs
from ..models.units import Block, decoder_layers
from ..scoring.profiles import Measuring
from .extent import Extent
from .fisher import second_order
from .objective import Kind, Objective
from .supernet import Supernet

logger = logging.getLogger(__name__)

RIDGE = 0.1  # λ where the compensation names none, as the criterion `surgeon` takes it
_SHORTEST = 16  # tokens of a window, where even one is more than there is time for
_OF_MEASURE = 0.5  # of the time: the first measure, where rounds follow
_OF_READING = 0.25  # of that: XᵀX
_TIMED = 4  # windows by which a pass is timed


class Clock:
    """Seconds that have passed, the same in all processes."""

    def __init__(self, minutes: float | None, device: torch.device):
        self._start, self._bound, self._device = time.monotonic(), minutes, device

    @property
    def seconds(self) -> float:
        """Since it was made; the mean over all processes."""
        passed = torch.tensor(time.monotonic() - self._start, dtype=torch.float64, device="cpu")
        if is_distributed():
            passed = passed.to(self._device)
            add_up(passed)
        return float(passed) / processes()

    @property
    def left(self) -> float | None:
        """Seconds until the bound; `None` where there is none."""
        return None if self._bound is None else 60 * self._bound - self.seconds


@dataclass
class Probe:
    """What a search measures with.

    Attributes:
        run: on what.
        net: the model with units gone.
        objective: against the dense model.
        batches: token ids of this process that are measured on.
        read: those that XᵀX is gathered of.
        windows: of all processes that are measured on.
        clock: since it began.
        pass_seconds: of one whole pass over the windows.
        solve_rate: floating-point operations per second of a pass.
    """

    run: Measuring
    net: Supernet
    objective: Objective
    batches: list[Tensor]
    read: list[Tensor]
    windows: int
    clock: Clock
    pass_seconds: float = 0.0
    solve_rate: float = 1.0

    def stream(self) -> LayerStream:
        """Of the windows that are measured on."""
        return LayerStream(self.run.model, self.batches, self.windows)

    def whole(self, what: str) -> float:
        """Of the model as it computes now."""
        return self.objective.of(whole_logits(self.run.model, self.batches), what)

    def foretold(self, extent: Extent) -> tuple[float, float]:
        """Seconds of the first measure, and of the rounds."""
        solves = self.net.solving(extent.solves) / self.solve_rate
        tokens = sum(batch.numel() for batch in self.batches)
        read = sum(batch.numel() for batch in self.read) / tokens if self.net.ridge is not None else 0.0
        share = extent.measure / max(extent.passes, 1)
        first = (extent.measure + read) * self.pass_seconds + share * solves
        return first, extent.rounds * self.pass_seconds + (1 - share) * solves


def prepared(run: Measuring, net: Supernet, kind: Kind, windows: int, clock: Clock, extent: Extent) -> Probe:
    """Measures how long a pass takes; where there is a bound, reads so much less text.

    Args:
        run: on what is measured.
        net: with which.
        kind: what.
        windows: at most, of each process.
        clock: with the bound.
        extent: of the search to come.
    """
    model, size, prefix = run.model, max(len(batch) for batch in run.batches), prefix_length(run.tokens)
    tokens = torch.cat(run.batches)[:windows]
    few = list(tokens[:_TIMED].split(size))
    for _ in whole_logits(model, [tokens[:1]]):  # the first pass is slower than others
        pass
    start = clock.seconds
    for _ in whole_logits(model, few):
        pass
    timed = torch.tensor(sum(one.numel() for one in few), dtype=torch.float64, device=input_device(model))
    add_up(timed)  # so that all processes foretell the same
    per_token = max(clock.seconds - start, 1e-9) * processes() / float(timed)
    rate = 2 * sum(parameter.numel() for parameter in model.parameters()) / per_token
    read = list(run.batches)
    if clock.left is not None:
        solves = net.solving(extent.solves) / rate
        tokens, read = _bounded(tokens, read, per_token, max(clock.left - solves, 0.0), extent, prefix)
    counted = torch.tensor(len(tokens), dtype=torch.int64, device=input_device(model))
    add_up(counted)
    batches = list(tokens.split(size))
    objective = Objective(kind, batches, prefix)
    seconds = per_token * float(counted) * tokens.shape[1] / processes()
    return Probe(run, net, objective, batches, read, int(counted), clock, seconds, rate)


def measured(probe: Probe, levels: Mapping[Block, Sequence[int]], *, keep: bool) -> dict[Block, list[float]]:
    """Δ_b(n) of every block alone, in nats per target.

    Args:
        probe: with which.
        levels: n of each block.
        keep: XᵀX is needed later.

    Raises:
        NonFiniteError: a loss, or what flows into a matrix, is NaN or infinite.
    """
    model, net, objective = probe.run.model, probe.net, probe.objective
    stream, depth = probe.stream(), len(decoder_layers(model))
    found: dict[Block, list[float]] = {}
    for streamed, products in progress(_both(probe, stream, levels), "search, layers", depth):
        if streamed.index == 0:
            objective.remember(stream.logits(streamed))
        for block in (block for block in levels if block.layer == streamed.index):
            if block in products:
                net.learn(block, products[block], keep=keep)
            losses = []
            for count in levels[block]:
                with net.instead(block, count):
                    losses.append(objective.of(stream.logits(streamed), f"{block.where} without {count} units"))
            found[block] = losses
            if not keep:
                net.forget(block)
    return found


def estimated(
    probe: Probe, levels: Mapping[Block, Sequence[int]], *, seed: int, keep: bool
) -> dict[Block, list[float]]:
    """Δ_b(n) of every block alone to second order; arguments and errors as for `measured`, and a seed."""
    model, net = probe.run.model, probe.net
    probe.objective.remember(whole_logits(model, probe.batches))
    if net.ridge is not None:
        for block, products in products_of(model, levels, probe.read):
            net.learn(block, products, keep=keep)
            for count in levels[block]:
                net.matrix(block, count, keep=True)
            if not keep:
                net.forget(block)
    found = second_order(model, net, levels, probe.objective, now={}, seed=seed, name="search")
    net.keep_only({})
    return found


def _both(
    probe: Probe, stream: LayerStream, levels: Mapping[Block, Sequence[int]]
) -> Iterator[tuple[StreamedLayer, dict[Block, Tensor]]]:
    """The layers of a stream, each with XᵀX of its blocks, of the windows that are read, where it is asked for."""
    if probe.net.ridge is None:
        yield from ((streamed, {}) for streamed in stream)
        return
    text = products_of(probe.run.model, levels, probe.read)
    found = next(text, None)
    for streamed in stream:
        own: dict[Block, Tensor] = {}
        while found is not None and found[0].layer == streamed.index:
            own[found[0]] = found[1]
            found = next(text, None)
        yield streamed, own


def products_of(model: Any, blocks: Iterable[Block], batches: Sequence[Tensor]) -> Iterator[tuple[Block, Tensor]]:
    """Yields XᵀX `(in, in)` of o_proj and down_proj of some blocks, layer by layer, in one forward pass."""
    blocks = list(blocks)
    for streamed in LayerStream(model, batches, sum(map(len, batches))):
        own = {block.reader.module: block for block in blocks if block.layer == streamed.index}
        if own:
            inputs = streamed.gather(list(own), ("products",))
            for name, block in own.items():
                products = inputs[name].products
                assert products is not None  # asked for
                yield block, products


def _bounded(
    tokens: Tensor, read: list[Tensor], per_token: float, seconds: float, extent: Extent, prefix: int
) -> tuple[Tensor, list[Tensor]]:
    """So much of the text that the first measure takes its part of some seconds, one short window at least."""
    seconds *= _OF_MEASURE if extent.rounds else 1.0
    tokens_read = int(_OF_READING * seconds / per_token)
    most = int((1 - _OF_READING) * seconds / per_token / extent.measure)  # tokens
    length = tokens.shape[1]
    tokens = tokens[:1, : min(max(most, prefix + _SHORTEST), length)] if most < length else tokens[: most // length]
    together = torch.cat(read)
    return tokens, list(together[: max(tokens_read // length, 1)].split(max(len(batch) for batch in read)))


def whole_logits(model: Any, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields the model's logits batch by batch."""
    device = input_device(model)
    for batch in batches:
        with plain_outputs(model):
            logits = model(input_ids=batch.to(device), use_cache=False).logits
        yield logits
        del logits  # not beside the next batch's
