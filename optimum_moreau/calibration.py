"""Text, files, datasets, tokens → seeded windows of token ids, with a content hash.

A window lies inside one document and is never padded; with a tokenizer that has a BOS token it starts with it. A text
file is one document; of a file of records, each row is one. Documents too short for a window are skipped.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import DataError
from .sources import DEFAULT_TEXT, read_documents, source_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Source = "str | Path | Iterable[str] | Dataset | Tensor | None"


@dataclass(frozen=True)
class CalibrationSet:
    """Calibration windows and where they come from.

    Attributes:
        tokens: int64 tensor `(samples, sequence_length)` on CPU.
        source: name of the file or dataset, without folders.
        seed: the windows were drawn with.
        sha256: of the token ids, little-endian int64.
        distinct: tokens of the text that the windows cover; in a short text they overlap, and these are fewer.
    """

    tokens: Tensor
    source: str
    seed: int
    sha256: str
    distinct: int

    def to_dict(self) -> dict[str, Any]:
        """What plan, summary and card record; not the tokens."""
        samples, length = self.tokens.shape
        return {
            "source": self.source,
            "seed": self.seed,
            "samples": samples,
            "sequence_length": length,
            "tokens": samples * length,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class CalibrationRecord:
    """What a saved record says of calibration windows, as `CalibrationSet.to_dict` writes it.

    Attributes:
        source: name of the file or dataset.
        seed: of the draw.
        samples: number of windows.
        sequence_length: tokens of each.
        tokens: of all.
        sha256: of the token ids.
    """

    source: str = ""
    seed: int = 0
    samples: int = 0
    sequence_length: int = 0
    tokens: int = 0
    sha256: str = ""


def load_calibration(
    source: Source,  # type: ignore[valid-type]
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    samples: int = 10,
    sequence_length: int = 128,
    seed: int = 0,
    column: str | None = None,
    vocab_size: int | None = None,
) -> CalibrationSet:
    """Draws windows of token ids; the same seed and source give the same tokens on every machine.

    Args:
        source: a path (.txt, .jsonl, .json, .csv, .parquet), `hub:id[:config[:split[:column]]]`, strings, a
            `datasets.Dataset`, token ids `(documents, length)` or `(length,)`, or `None` for the text that ships with
            this package.
        tokenizer: needed for anything but token ids.
        samples: number of windows.
        sequence_length: tokens per window, BOS included.
        seed: of the draw.
        column: text column of a file of records or a dataset; default `text`, or the only column of strings, or the
                chat in `messages`.
        vocab_size: of the model, to check the ids against.

    Raises:
        DataError: the source is missing, empty or too short; a column is missing; ids outside the vocabulary.
    """
    if source is None:
        logger.warning(
            "no calibration text given: using the small text that ships with optimum_moreau; text like the model's"
            " use is better (calibration=…, --calibration FILE)"
        )
        source = DEFAULT_TEXT
    generator = torch.Generator().manual_seed(seed)
    if isinstance(source, Tensor):
        documents: Iterable[Tensor] = _token_documents(source)
        documents, bos, name = _shuffled(list(documents), generator), [], "token ids"
    else:
        if tokenizer is None:
            raise DataError("a tokenizer is needed to read text: MoreauPruner(config, tokenizer=tokenizer)")
        texts = _shuffled(read_documents(source, column=column, seed=seed, tokenizer=tokenizer), generator)
        documents = (tokenize(text, tokenizer) for text in texts)
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        name = source_name(source)
    tokens, distinct = _windows(documents, bos, name, samples, sequence_length, generator)
    check_vocabulary(tokens, vocab_size, name)
    digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
    return CalibrationSet(tokens, name, seed, digest, distinct)


def check_vocabulary(tokens: Tensor, vocab_size: int | None, name: str) -> None:
    """Raises DataError where a token id, of the text called `name`, is outside a model's vocabulary."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        vocabulary = "any vocabulary" if vocab_size is None else f"the model's vocabulary of {vocab_size}"
        raise DataError(
            f"{name}: token id {low if low < 0 else high} is outside {vocabulary}; is this the model's own tokenizer?"
        )


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Returns the ids of a text, `(length,)`, without special tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _token_documents(tokens: Tensor) -> Iterator[Tensor]:
    if tokens.dim() not in (1, 2) or tokens.is_floating_point() or not tokens.numel():
        raise DataError(
            f"token ids: {tuple(tokens.shape)} of {tokens.dtype}; pass integers, (length,) or (documents, length)"
        )
    yield from tokens.reshape(-1, tokens.shape[-1]).to("cpu", torch.int64)


def _shuffled(documents: list[Any], generator: torch.Generator) -> list[Any]:
    return [documents[i] for i in torch.randperm(len(documents), generator=generator).tolist()]


def _windows(
    documents: Iterable[Tensor], bos: list[int], name: str, samples: int, length: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Takes one window at a random place of each document in turn, and goes round again while more are needed.

    Returns:
        The windows, and how many tokens they cover, each place of a document counted once, and BOS once.
    """
    need = length - len(bos)
    windows: list[Tensor] = []
    usable: list[Tensor] = []
    starts: dict[int, list[int]] = {}  # of the windows of each usable document
    longest = 0

    def take(i: int) -> None:
        document = usable[i]
        start = int(torch.randint(len(document) - need + 1, (1,), generator=generator))
        starts.setdefault(i, []).append(start)
        windows.append(torch.cat([torch.tensor(bos, dtype=torch.int64), document[start : start + need]]))

    for document in documents:
        longest = max(longest, len(document))
        if len(document) >= need and len(windows) < samples:
            usable.append(document)
            take(len(usable) - 1)
        if len(windows) == samples:
            break
    if not usable:
        raise DataError(
            f"{name}: the longest document has {longest} tokens, a window needs {need}; give longer text or a smaller"
            " sequence_length"
        )
    for i in range(samples - len(windows)):
        take(i % len(usable))
    ends = ((start, after) for own in starts.values() for start, after in pairwise([*sorted(own), math.inf]))
    covered = sum(int(min(after - start, need)) for start, after in ends)
    return torch.stack(windows), covered + len(bos)
