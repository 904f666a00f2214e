"""What is measured of a run's model, for its record and card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.validation import check_bos
from ..data.sources import content_hash, read_documents, source_name
from ..data.windows import check_positions
from ..evaluation.perplexity import SEGMENT, Segments, measure_segments, segment
from ..evaluation.records import Measurement


class EvaluationText:
    """A text that models are measured on: it is read and tokenised once, however many there are.

    Args:
        source: a file, `hub:` name, strings or a dataset.
        tokenizer: of the models.
        column: text column of records.
        bos: how its segments begin, where `segments` is not told; as for `perplexity`.

    Raises:
        DataError: it cannot be read.
        ConfigError: `bos` is unknown.
    """

    def __init__(
        self, source: Any, tokenizer: PreTrainedTokenizerBase, column: str | None = None, *, bos: str = "auto"
    ) -> None:
        check_bos(bos)
        self.bos = bos
        self.name = source_name(source)
        self.sha256 = content_hash(source) if isinstance(source, (str, Path)) else ""
        self._tokenizer = tokenizer
        self._documents = read_documents(source, column=column, seed=None, tokenizer=tokenizer)
        self._segments: dict[tuple[int, int | None, str], Segments] = {}

    @classmethod
    def of(cls, text: Any, tokenizer: PreTrainedTokenizerBase, column: str | None = None) -> EvaluationText:
        """A text that was read before stays as it is; anything else is a source."""
        return text if isinstance(text, cls) else cls(text, tokenizer, column)

    def segments(self, sequence_length: int = SEGMENT, most: int | None = None, *, bos: str | None = None) -> Segments:
        """Its segments, and the protocol in words; errors as for `segment`."""
        key = sequence_length, most, self.bos if bos is None else bos
        if key not in self._segments:
            self._segments[key] = segment(self._documents, self._tokenizer, sequence_length, most, bos=key[-1])
        return self._segments[key]


def measured_perplexity(
    model: PreTrainedModel,
    text: EvaluationText,
    stage: str,
    *,
    sequence_length: int = SEGMENT,
    batch_size: int = 8,
    max_segments: int | None = None,
    bos: str | None = None,
) -> Measurement:
    """The perplexity of a model on a text.

    Args:
        model: the model.
        text: of its tokenizer.
        stage: `before`, `pruned` or `recovered`.
        sequence_length: tokens per segment.
        batch_size: segments per forward pass.
        max_segments: only the first so many segments.
        bos: how a segment begins; default: as the text says.

    Raises:
        MoreauError: as for `perplexity`.
    """
    check_positions(model.config, sequence_length)
    found = measure_segments(model, text.segments(sequence_length, max_segments, bos=bos), batch_size)
    return Measurement(stage, text.name, "perplexity", found.protocol, found.perplexity, text.sha256)
