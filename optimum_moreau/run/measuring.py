"""What is measured of a run's model, for its record and card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.sources import content_hash, read_documents, source_name
from ..data.windows import check_positions
from ..evaluation import SEGMENT, segment
from ..evaluation.perplexity import measure_segments
from ..evaluation.records import Measurement


class EvaluationText:
    """A text that models are measured on: it is read and tokenised once, however many there are.

    Args:
        source: a file, `hub:` name, strings or a dataset.
        tokenizer: of the models.
        column: text column of records.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, source: Any, tokenizer: PreTrainedTokenizerBase, column: str | None = None) -> None:
        self.name = source_name(source)
        self.sha256 = content_hash(source) if isinstance(source, (str, Path)) else ""
        self._tokenizer = tokenizer
        self._documents = read_documents(source, column=column, seed=None, tokenizer=tokenizer)
        self._segments: dict[tuple[int, int | None], Tensor] = {}

    @classmethod
    def of(cls, text: Any, tokenizer: PreTrainedTokenizerBase, column: str | None = None) -> EvaluationText:
        """A text that was read before stays as it is; anything else is a source."""
        return text if isinstance(text, cls) else cls(text, tokenizer, column)

    def segments(self, sequence_length: int = SEGMENT, most: int | None = None) -> Tensor:
        """Segments of token ids, `(segments, sequence_length)`; errors as for `segment`."""
        if (sequence_length, most) not in self._segments:
            self._segments[sequence_length, most] = segment(self._documents, self._tokenizer, sequence_length, most)
        return self._segments[sequence_length, most]


def measured_perplexity(
    model: PreTrainedModel,
    text: EvaluationText,
    stage: str,
    *,
    sequence_length: int = SEGMENT,
    batch_size: int = 8,
    max_segments: int | None = None,
) -> Measurement:
    """The perplexity of a model on a text.

    Args:
        model: the model.
        text: of its tokenizer.
        stage: `before`, `pruned` or `recovered`.
        sequence_length: tokens per segment.
        batch_size: segments per forward pass.
        max_segments: only the first so many segments.

    Raises:
        MoreauError: as for `perplexity`.
    """
    check_positions(model.config, sequence_length)
    found = measure_segments(model, text.segments(sequence_length, max_segments), batch_size).perplexity
    return Measurement(stage, text.name, "perplexity", f"{sequence_length}-token segments", found, text.sha256)
