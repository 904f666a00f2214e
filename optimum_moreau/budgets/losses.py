"""What a search measures, the calibration loss while some units of a block are silent (search.py), and its use.

The least loss for a number of parameters: min Σ_b Δ_b(n_b), Δ_b measured by a search, made smooth and convex.

The search minimises a sum of convex functions, so the greedy allocation is exact: unit by unit, what costs the least
loss per parameter goes first. What the n-th unit of a block costs is interpolated between the slopes of the lower
convex hull of the points (n, Δ_b(n)) and (0, 0), each put at the middle of its segment, and extrapolated to n = 0: with
the bare slopes whole segments went at once, and two draws of the text took a quarter of a block here or there. Beyond
three quarters of a block nothing is measured, and the slope is taken to double and double again (`_BEYOND`): with all
but one unit measured instead, the chord to that point made the search empty whole blocks, and a model got worse than
the uniform one, as blocks that are empty together cost more than the sum of each alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..distributed import add_up, is_distributed
from ..errors import NonFiniteError
from ..models.hooks import silent
from ..models.progress import progress
from ..models.stream import LayerStream, StreamedLayer
from ..models.units import Block, decoder_layers
from ..scoring.profiles import probes, profile_name, profile_of
from ..scoring.scores import Ranking

logger = logging.getLogger(__name__)

# Windows that a search reads, of each process: at most 128, and so many that it takes 2,560 forward passes of one
# window, but not fewer than 64. With the preset's 400 windows of scoring these are 2,960, as dear as 987 forward and
# backward; from 12 layers on, all in scope, 64 windows take more.
SEARCH_WINDOWS = (64, 128)
WINDOW_PASSES = 2560
_BEYOND = (2.0, 4.0)  # of the last slope, over each half of the units beyond what is measured: a choice, not a law


def search_passes(blocks: Iterable[Block], depth: int) -> int:
    """Forward passes over the calibration text that a search takes; from layer l of L on it is 1 − l/L of one."""
    layers = ((len(probes(block.total)), depth - (block.layer or 0)) for block in blocks)
    return 2 + math.ceil(sum(times * behind for times, behind in layers) / depth)


def search_windows(passes: int) -> int:
    """Windows that a search of so many passes reads, of each process: the fewer the deeper the model, to stay cheap."""
    least, most = SEARCH_WINDOWS
    return min(max(WINDOW_PASSES // passes, least), most)


def search(
    model: PreTrainedModel, blocks: Sequence[Block], scores: Mapping[str, Tensor], batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Measures Δ_b(n) of every block; nothing is written to the model, the units' outputs are zeroed on their way.

    Args:
        model: a causal language model in `scoring_mode`.
        blocks: of heads and MLP channels.
        scores: of their units; the lowest are silent first, protected or not.
        batches: token ids of this process, each `(windows, length)`.

    Returns:
        Profile name → float64 tensor `(probes,)` on CPU.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    depth = len(decoder_layers(model))
    passes = search_passes(blocks, depth)
    batches = list(torch.cat(list(batches))[: search_windows(passes)].split(max(len(batch) for batch in batches)))
    windows = sum(len(batch) for batch in batches)
    logger.info("budget 'search': %d forward passes over %d windows", passes, windows)
    stream = LayerStream(model, batches, windows)
    dense, found = None, {}
    for streamed in progress(stream, "search, layers", depth):
        if dense is None:
            dense = _loss(stream, streamed, batches, "the model as it is")
        for block in (block for block in blocks if block.layer == streamed.index):
            order = torch.argsort(scores[block.where], stable=True)
            losses = []
            for count in probes(block.total):
                with silent([(streamed.layer, block, order[:count])]):
                    loss = _loss(stream, streamed, batches, f"{block.where} without {count} units")
                losses.append(loss - dense)
            found[profile_name("search", block)] = torch.tensor(losses, dtype=torch.float64, device="cpu")
    return found


def _loss(stream: LayerStream, streamed: StreamedLayer, batches: Sequence[Tensor], what: str) -> float:
    """Mean next-token loss over the tokens of all processes, of the model from a layer on."""
    total = torch.zeros(2, dtype=torch.float64, device="cpu")  # loss, tokens
    for batch, logits in zip(batches, stream.logits(streamed), strict=True):
        for ids, scores in zip(batch, logits, strict=True):  # one window in float32 at a time
            labels = ids[1:].to(logits.device)
            loss = nn.functional.cross_entropy(scores[:-1].float(), labels, reduction="sum")
            total += torch.tensor([loss.item(), labels.numel()], dtype=torch.float64, device="cpu")
    if is_distributed():
        total = total.to(logits.device)
        add_up(total)
    mean = float(total[0] / total[1])
    if not math.isfinite(mean):
        raise NonFiniteError(f"budget 'search': the loss of {what} is {mean}; check the model's weights")
    return mean


def allocate(
    blocks: Sequence[Block], goal: float, values: Ranking, most: Sequence[float] | None = None
) -> dict[Block, float]:
    """Spreads a number of parameters over blocks so that Σ_b Δ_b is least.

    Args:
        blocks: of any kind.
        goal: parameters.
        values: of `UnitScores`, with what `search` measured.
        most: the largest share of each block that may go; default: all but one unit.

    Returns:
        Block → number of units, not whole for one of them.
    """
    sizes = np.array([float(block.unit_parameters) for block in blocks])
    limits = np.array([block.total for block in blocks]) * (most or math.inf)
    losses = [unit_losses(block, values) for block in blocks]
    of = np.repeat(np.arange(len(blocks)), [len(found) for found in losses])
    numbers = np.concatenate([np.arange(len(found)) for found in losses])
    order = np.lexsort((numbers, of, np.concatenate(losses) / sizes[of]))
    whole = np.clip(limits[of] - numbers, 0.0, 1.0) * sizes[of]  # of each unit, what may go
    before = np.cumsum(whole[order]) - whole[order]
    taken = np.clip(goal - before, 0.0, whole[order])
    removed = np.bincount(of[order], taken, len(blocks)) / sizes
    return dict(zip(blocks, removed.tolist(), strict=True))


def predicted_loss(counts: Mapping[Block, int], values: Ranking) -> float:
    """Σ_b Δ_b(n_b), on the smooth curves: what the search minimises."""
    return sum(float(unit_losses(block, values)[:count].sum()) for block, count in counts.items())


def unit_losses(block: Block, values: Ranking) -> np.ndarray:
    """By how much the loss grows with the n-th unit of heads or MLP channels that goes, in nats; it never falls with n.

    Returns:
        float64 array `(units − 1,)`, n = 1 … all but one.
    """
    hull = _hull(block, values)
    middles = [(left[0] + right[0]) / 2 for left, right in pairwise(hull)]
    slopes = [_slope(left, right) for left, right in pairwise(hull)]
    if not slopes:
        return np.zeros(0)
    end = hull[-1][0]
    if rest := block.total - 1 - end:
        steepest = max(map(abs, [*slopes, _slope(hull[0], hull[-1])]))  # a loss may have fallen
        middles += [end + rest / 4, end + rest * 3 / 4]
        slopes += [times * steepest for times in _BEYOND]
    if len(slopes) > 1:  # the line through the first two, down to no loss
        start = slopes[0] - middles[0] * (slopes[1] - slopes[0]) / (middles[1] - middles[0])
        middles, slopes = [0.0, *middles], [max(start, min(slopes[0], 0.0)), *slopes]
    return np.interp(np.arange(block.total - 1) + 0.5, middles, slopes)


def _hull(block: Block, values: Ranking) -> list[tuple[int, float]]:
    """The corners of the lower convex hull of (0, 0) and the points measured, from left to right."""
    counts = probes(block.total)
    hull = [(0, 0.0)]
    for point in zip(counts, profile_of(values, "search", block, len(counts)), strict=False):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
