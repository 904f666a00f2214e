"""Perplexity as a metric of the `evaluate` library (extra `evaluate`)."""

from __future__ import annotations

from typing import Any

import datasets

from ..data.sources import read_documents
from .perplexity import perplexity

try:
    import evaluate
except ImportError as error:
    raise ImportError(
        "Perplexity: needs evaluate, which is not installed: pip install 'optimum-moreau[evaluate]'"
    ) from error


class Perplexity(evaluate.Metric):
    """`evaluate` metric: `Perplexity().compute(predictions=texts, model=model, tokenizer=tokenizer)`.

    Returns a dictionary with `perplexity`, `tokens`, `segments` and `protocol`. Instead of `predictions`, `text` takes
    a path, a `hub:` name or a dataset. `sequence_length` (128), `batch_size` (8), `max_segments` and `bos` ("auto" or
    "paper") are keyword arguments of `compute`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Token-weighted perplexity of a causal language model over non-overlapping segments.",
            citation="",
            inputs_description="predictions: texts to score; model and tokenizer: of the language model.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def compute(
        self, *, predictions: list[str] | None = None, text: Any = None, column: str | None = None, **settings: Any
    ) -> dict[str, Any]:
        """Measures the perplexity of `predictions`, or of the documents of `text`; settings as for `perplexity`."""
        documents = read_documents(
            predictions or [] if text is None else text, column=column, seed=None, option="column"
        )
        return super().compute(predictions=documents, **settings)

    def _compute(self, predictions: list[str], **settings: Any) -> dict[str, Any]:
        return vars(perplexity(text=predictions, **settings))
