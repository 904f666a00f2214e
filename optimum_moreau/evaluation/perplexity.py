"""Perplexity over non-overlapping segments of n tokens; 128 in LLM-Pruner's and MoreauPruner's tables.

    PPL = exp( −(1/N) Σ_segments Σ_{t=c+1..n} log p(x_t | x_<t) ),   N = segments · (n − c)

The documents are tokenised without BOS and concatenated; the tail that fills no segment is dropped. A segment begins as
the tokenizer begins a text (`bos="auto"`): what it puts there, its BOS or several tokens, is context and no target, and
c is their number. Without any, and in the papers' protocol (`bos="paper"`), c = 1: the first token of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.validation import check_bos
from ..data.sources import read_documents
from ..data.tokens import token_pieces
from ..data.windows import check_positions, check_vocabulary, text_prefix
from ..errors import ConfigError, DataError, NonFiniteError
from ..models.placement import input_device
from ..models.progress import progress
from ..models.undisturbed import plain_outputs, undisturbed
from ..templates.sandbox import one_line

SEGMENT = 128  # tokens, of the papers' tables


@dataclass(frozen=True)
class Segments:
    """What a perplexity is measured on.

    Attributes:
        ids: of the tokens, `(segments, n)`.
        prefix: tokens at the head of each that the tokenizer put there; no targets, as the first token never is one.
        protocol: how the text was cut, in words.
    """

    ids: Tensor
    prefix: int = 0
    protocol: str = ""

    @property
    def context(self) -> int:
        """Tokens at the head of each segment that are no targets."""
        return max(self.prefix, 1)


@dataclass(frozen=True)
class PerplexityResult:
    """A perplexity, the numbers of target tokens and of segments that it was measured on, and the protocol."""

    perplexity: float
    tokens: int
    segments: int
    protocol: str = ""


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
    bos: str = "auto",
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
        bos: `auto`: a segment begins as the tokenizer begins a text; `paper`: without BOS, as in the papers' tables.

    Raises:
        ConfigError: a segment is longer than the model's positions, or has no target; `bos` is neither.
        DataError: the text cannot be read, is shorter than one segment, or is not of the model's vocabulary.
        NonFiniteError: a loss is NaN or infinite.
    """
    check_bos(bos)
    check_positions(model.config, sequence_length)
    documents = read_documents(text, column=column, seed=None, option="column (evaluate --text-column)")
    segments = segment(documents, tokenizer, sequence_length, max_segments, bos=bos)
    return measure_segments(model, segments, batch_size)


def segment(
    documents: list[str],
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    most: int | None = None,
    *,
    bos: str = "auto",
) -> Segments:
    """Returns the documents' tokens, concatenated and cut into segments; each begins as `bos` says (`perplexity`).

    For only the first so many segments, no more of the text is tokenised than they need.

    Raises:
        ConfigError: a segment has no target; `bos` is unknown.
        DataError: the text fills no segment.
    """
    check_bos(bos)
    prefix = text_prefix(tokenizer) if bos == "auto" else []
    if sequence_length < (least := max(len(prefix), 1) + 1):
        why = f": the tokenizer begins a text with {len(prefix)} tokens" if len(prefix) > 1 else ""
        raise ConfigError(f"sequence_length: {sequence_length} is not a whole number ≥ {least}{why}")
    own = sequence_length - len(prefix)
    needed = None if most is None else most * own
    pieces, length = [], 0
    for piece in (piece for document in documents for piece in _pieces(document, tokenizer, prefix)):
        pieces.append(piece)
        length += len(piece)
        if needed is not None and length >= needed:
            break
    ids = torch.cat(pieces)[:needed]
    count = len(ids) // own
    if not count:
        raise DataError(f"evaluation text: {len(ids)} tokens, one segment needs {own}; give longer text")
    ids = ids[: count * own].view(count, own)
    if prefix:
        ids = torch.cat([torch.tensor(prefix, dtype=torch.int64, device="cpu").expand(count, -1), ids], dim=1)
    return Segments(ids, len(prefix), _protocol(sequence_length, tokenizer.convert_ids_to_tokens(prefix), most))


def _pieces(document: str, tokenizer: PreTrainedTokenizerBase, prefix: list[int]) -> Iterator[Tensor]:
    """The ids of a document, without the prefix, which a chat template may have written: no segment has it twice."""
    for i, piece in enumerate(token_pieces(document, tokenizer)):
        written = prefix and not i and piece[: len(prefix)].tolist() == prefix
        yield piece[len(prefix) :] if written else piece


def _protocol(sequence_length: int, prefix: Sequence[str], most: int | None) -> str:
    """`128-token segments after <bos>, the first 200`: how a figure was measured, wherever it stands."""
    begin = f" after {one_line(' '.join(map(str, prefix)))}" if prefix else ", no BOS"
    return f"{sequence_length}-token segments{begin}" + (f", the first {most}" if most else "")


@undisturbed()
def measure_segments(model: PreTrainedModel, segments: Segments, batch_size: int = 8) -> PerplexityResult:
    """Measures a model's perplexity on segments; errors as for `perplexity`."""
    check_vocabulary(segments.ids, model.config.vocab_size, "evaluation text")
    check_positions(model.config, segments.ids.shape[1])
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), plain_outputs(model):  # inference mode would leave an offloaded model unfit for gradients
            total = _loss(model, segments, batch_size)
    finally:
        model.train(training)
    count, length = segments.ids.shape
    tokens = count * (length - segments.context)
    return PerplexityResult(math.exp(min(total / tokens, 700.0)), tokens, count, segments.protocol)


def _loss(model: PreTrainedModel, segments: Segments, batch_size: int) -> float:
    """The negative log-likelihood of all targets together."""
    total, context = 0.0, segments.context
    for batch in progress(segments.ids.split(batch_size), "perplexity, batches"):
        ids = batch.to(input_device(model))
        logits = model(input_ids=ids, use_cache=False).logits[:, context - 1 : -1].float()  # (segments, n − c, vocab.)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, context:].flatten(), reduction="sum")
        total += losses.double().item()
        if not math.isfinite(total):
            raise NonFiniteError(
                f"evaluation: the loss is {total}; check the model's weights, or load it in bfloat16 or float32"
            )
    return total
