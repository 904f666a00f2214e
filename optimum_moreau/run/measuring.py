"""What is measured of a run's model, for its record and card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.sources import content_hash, source_name
from ..evaluation import perplexity
from ..evaluation.records import Measurement


def measured_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Any,
    stage: str,
    *,
    sequence_length: int,
    **settings: Any,
) -> Measurement:
    """The perplexity on a text.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        text: a file, `hub:` name, strings or a dataset.
        stage: `before`, `pruned` or `recovered`.
        sequence_length: tokens per segment.
        **settings: as for `perplexity`.
    """
    found = perplexity(model, tokenizer, text, sequence_length=sequence_length, **settings).perplexity
    protocol = f"{sequence_length}-token segments"
    key = content_hash(text) if isinstance(text, (str, Path)) else ""
    return Measurement(stage, source_name(text), "perplexity", protocol, found, key)
