"""What a search measures: the calibration loss while some units of a block are silent (search.py)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..distributed import add_up, is_distributed
from ..errors import NonFiniteError
from ..models.hooks import silent
from ..models.stream import LayerStream, StreamedLayer
from ..models.units import Block, decoder_layers
from ..scoring.profiles import probes, profile_name

logger = logging.getLogger(__name__)

# Windows that a search reads, of each process: at most 128, and so many that it takes 2,560 forward passes of one
# window, but not fewer than 64. With the preset's 400 windows of scoring these are 2,960, as dear as 987 forward and
# backward; from 12 layers on, all in scope, 64 windows take more.
SEARCH_WINDOWS = (64, 128)
WINDOW_PASSES = 2560


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
    for streamed in tqdm(stream, "search", depth, leave=False, disable=None):
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
