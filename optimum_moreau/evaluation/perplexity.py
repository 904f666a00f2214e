"""Perplexity over non-overlapping segments, as in LLM-Pruner's and MoreauPruner's tables (128-token segments).

    PPL = exp( −(1/N) Σ_segments Σ_{t=2..n} log p(x_t | x_<t) ),   N = segments · (n − 1)

The documents are tokenised without BOS and concatenated; the tail that fills no segment is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.sources import read_documents
from ..data.tokens import token_pieces
from ..data.windows import check_positions, check_vocabulary
from ..errors import ConfigError, DataError, NonFiniteError
from ..models.placement import input_device
from ..models.progress import progress
from ..models.undisturbed import plain_outputs, undisturbed

SEGMENT = 128  # tokens, of the papers' tables


@dataclass(frozen=True)
class PerplexityResult:
    """A perplexity, and the numbers of target tokens and of segments that it was measured on."""

    perplexity: float
    tokens: int
    segments: int


@undisturbed()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Any,
    *,
    sequence_length: int = SEGMENT,
    batch_size: int = 8,
    column: str | None = None,
    max_segments: int | None = None,
) -> PerplexityResult:
    """Measures a model's perplexity.

    Args:
        model: a causal language model; evaluated in the mode and dtype it is in, on its device, in eval mode.
        tokenizer: its tokenizer.
        text: a path, `hub:id[:config[:split[:column]]]`, strings or a `datasets.Dataset`, as for calibration.
        sequence_length: tokens per segment.
        batch_size: segments per forward pass.
        column: text column of records.
        max_segments: only the first so many segments.

    Raises:
        ConfigError: a segment is longer than the model's positions, or has no target.
        DataError: the text cannot be read, is shorter than one segment, or is not of the model's vocabulary.
        NonFiniteError: a loss is NaN or infinite.
    """
    check_positions(model.config, sequence_length)
    documents = read_documents(text, column=column, seed=None, option="column (evaluate --text-column)")
    segments = segment(documents, tokenizer, sequence_length, max_segments)
    return measure_segments(model, segments, batch_size)


def segment(
    documents: list[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int, most: int | None = None
) -> Tensor:
    """Returns the documents' tokens, concatenated and cut into segments, `(segments, sequence_length)`.

    For only the first so many segments, no more of the text is tokenised than they need.

    Raises:
        ConfigError: a segment has no target.
        DataError: the text fills no segment.
    """
    if sequence_length < 2:
        raise ConfigError(f"sequence_length: {sequence_length} is not a whole number ≥ 2")
    needed = None if most is None else most * sequence_length
    pieces, length = [], 0
    for piece in (piece for document in documents for piece in token_pieces(document, tokenizer)):
        pieces.append(piece)
        length += len(piece)
        if needed is not None and length >= needed:
            break
    ids = torch.cat(pieces)[:needed]
    count = len(ids) // sequence_length
    if not count:
        raise DataError(f"evaluation text: {len(ids)} tokens, one segment needs {sequence_length}; give longer text")
    return ids[: count * sequence_length].view(count, sequence_length)


@undisturbed()
def measure_segments(model: PreTrainedModel, segments: Tensor, batch_size: int = 8) -> PerplexityResult:
    """Measures a model's perplexity on token ids `(segments, length)`; errors as for `perplexity`."""
    check_vocabulary(segments, model.config.vocab_size, "evaluation text")
    check_positions(model.config, segments.shape[1])
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), plain_outputs(model):  # inference mode would leave an offloaded model unfit for gradients
            total = _loss(model, segments, batch_size)
    finally:
        model.train(training)
    tokens = segments.numel() - len(segments)
    return PerplexityResult(math.exp(min(total / tokens, 700.0)), tokens, len(segments))


def _loss(model: PreTrainedModel, segments: Tensor, batch_size: int) -> float:
    """The negative log-likelihood of all targets together."""
    total = 0.0
    for batch in progress(segments.split(batch_size), "perplexity, batches"):
        ids = batch.to(input_device(model))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (segments, n − 1, vocabulary)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        total += losses.double().item()
        if not math.isfinite(total):
            raise NonFiniteError(
                f"evaluation: the loss is {total}; check the model's weights, or load it in bfloat16 or float32"
            )
    return total
