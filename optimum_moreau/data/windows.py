"""Text, files, datasets, tokens → seeded windows of token ids, with a content hash.

A window lies inside one document and is never padded. It begins as the tokenizer begins a text: with a BOS token where
the tokenizer itself adds one, and never with two. A text file is one document; of a file of records, each row is one.
Documents too short for a window are skipped. Of a document longer than two million characters, the parts of some 65,000
that it is cut into at white space stand for documents, so that only those are tokenised that give a window.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from ..models.undisturbed import undisturbed
from .sources import DEFAULT_TEXT, content_hash, is_of_hub, path_of, read_documents, source_name
from .tokens import PIECE, token_documents, tokenize

logger = logging.getLogger(__name__)

Source = Any  # str | Path | Iterable[str] | Dataset | Tensor | BatchEncoding | None
LONG = 1 << 21  # characters of a document that is tokenised whole at most
_PER_BYTE, _PER_CHARACTER = 8, 200  # memory that a text takes, and a piece of it while it is tokenised
_Span = tuple[int, int, int]  # document, and where in it a part begins and ends
_PER_TOKEN = 32  # characters of a part for every token of a window: far more than any text has


@dataclass(frozen=True)
class CalibrationRecord:
    """What a saved record says of calibration windows, as `CalibrationSet.to_dict` writes it; `tokens` are counted."""

    source: str = ""
    seed: int = 0
    samples: int = 0
    sequence_length: int = 0
    tokens: int = 0
    sha256: str = ""
    text_sha256: str = ""


@dataclass(frozen=True)
class CalibrationSet:
    """Calibration windows and where they come from.

    Attributes:
        tokens: int64 tensor `(samples, sequence_length)` on CPU.
        source: name of the file or dataset, without folders.
        seed: the windows were drawn with.
        sha256: of the token ids, little-endian int64.
        distinct: tokens of the text that the windows cover; in a short text they overlap, and these are fewer.
        places: of each window, its document, in the order that they were drawn in, and where in it the window starts.
        text_sha256: of the file or dataset name that they were drawn from; empty where it was neither.
    """

    tokens: Tensor
    source: str
    seed: int
    sha256: str
    distinct: int
    places: tuple[tuple[int, int], ...] = ()
    text_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What plan, summary and card record; not the tokens."""
        samples, length = self.tokens.shape
        hashes = self.sha256, self.text_sha256
        return asdict(CalibrationRecord(self.source, self.seed, samples, length, samples * length, *hashes))


@undisturbed()
def load_calibration(
    source: Source,
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
            `datasets.Dataset`, token ids `(documents, length)` or `(length,)`, what a tokenizer gave for some texts
            (without its padding), or `None` for the text that ships with this package.
        tokenizer: needed for anything but token ids.
        samples: number of windows.
        sequence_length: tokens per window, those included that the tokenizer begins a text with.
        seed: of the draw.
        column: text column of a file of records or a dataset; default `text`, or the only column of strings, or the
                chat in `messages`.
        vocab_size: of the model, to check the ids against.

    Raises:
        DataError: the source is missing, empty or too short; a column is missing; ids outside the vocabulary.
    """
    return CalibrationText(source, tokenizer, column).windows(samples, sequence_length, seed, vocab_size=vocab_size)


class CalibrationText:
    """A text that windows are drawn from: it is read once, and no part of it is tokenised twice.

    Arguments are as for `load_calibration`; what an iterator gives is kept.
    """

    def __init__(
        self, source: Source = None, tokenizer: PreTrainedTokenizerBase | None = None, column: str | None = None
    ) -> None:
        self.source = list(source) if isinstance(source, Iterator) else source
        self._text = DEFAULT_TEXT if source is None else self.source
        self._tokenizer: Any = tokenizer  # `None` is refused as text is read
        self._column = column
        self._texts: dict[int, list[str]] = {}  # seed of the reading → documents
        self._ids: dict[tuple[int, _Span], Tensor] = {}

    @classmethod
    def of(cls, source: Any, tokenizer: PreTrainedTokenizerBase | None, column: str | None) -> CalibrationText:
        """A text that was read before stays as it is; anything else is a source."""
        return source if isinstance(source, cls) else cls(source, tokenizer, column)

    def windows(
        self, samples: int, sequence_length: int, seed: int, *, vocab_size: int | None = None
    ) -> CalibrationSet:
        """Draws windows; arguments and errors as for `load_calibration`."""
        generator = torch.Generator("cpu").manual_seed(seed)
        documents: Iterable[Tensor]
        if self._tokens is not None:
            documents, prefix, name = shuffled(self._tokens, generator), [], "token ids"
        else:
            read = self._read(seed)
            spans = [span for i, text in enumerate(self._texts[read]) for span in _spans(i, text, sequence_length)]
            documents = (self._tokenized(read, span) for span in shuffled(spans, generator))
            prefix, name = self._prefix, source_name(self._text)
        tokens, distinct, places = _windows(documents, prefix, name, samples, sequence_length, generator)
        check_vocabulary(tokens, vocab_size, name)
        digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
        return CalibrationSet(tokens, name, seed, digest, distinct, places, self._text_sha256)

    def forget(self) -> None:
        """Lets go of what was read: the windows are drawn."""
        self._texts.clear()
        self._ids.clear()

    @cached_property
    def _tokens(self) -> list[Tensor] | None:
        return token_documents(self.source)

    @cached_property
    def _text_sha256(self) -> str:
        return content_hash(self._text) if isinstance(self._text, (str, Path)) else ""

    @cached_property
    def _prefix(self) -> list[int]:
        return text_prefix(self._tokenizer)

    def _read(self, seed: int) -> int:
        """Reads the documents, if they were not; returns the seed that they were read with."""
        if not is_of_hub(self.source):
            seed = 0  # decides the order of a Hub dataset alone
        if seed in self._texts:
            return seed
        if self._tokenizer is None:
            raise DataError("a tokenizer is needed to read text: MoreauPruner(config, tokenizer=tokenizer)")
        if self.source is None:
            logger.warning(
                "no calibration text given: using the small text that ships with optimum_moreau; text like the model's"
                " use is better (calibration=…, --calibration FILE)"
            )
        where: dict[str, Any] = {"column": self._column, "option": "calibration_column (--calibration-column)"}
        self._texts[seed] = read_documents(self._text, seed=seed, tokenizer=self._tokenizer, **where)
        return seed

    def _tokenized(self, read: int, span: _Span) -> Tensor:
        if (read, span) not in self._ids:
            text, start, end = self._texts[read][span[0]], *span[1:]
            ids = tokenize(text[start:end], self._tokenizer)
            # not what every window of it will begin with: a chat template may have written it
            written = self._prefix and ids[: len(self._prefix)].tolist() == self._prefix
            self._ids[read, span] = ids[len(self._prefix) :] if written else ids
        return self._ids[read, span]


def reading_bytes(source: Any) -> int:
    """What reading a file of text and tokenising it takes in main memory, about; 0 for what is no file.

    A byte is held as it is read, as one to four bytes of a string, and of what is tokenised as at most eight of ids;
    a piece at a time is with the tokenizers library.
    """
    path = DEFAULT_TEXT if source is None else path_of(source) if isinstance(source, (str, Path)) else None
    return _PER_BYTE * path.stat().st_size + _PER_CHARACTER * PIECE if path and path.is_file() else 0


def check_vocabulary(tokens: Tensor, vocab_size: int | None, name: str) -> None:
    """Raises DataError where a token id, of the text called `name`, is outside a model's vocabulary."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        vocabulary = "any vocabulary" if vocab_size is None else f"the model's vocabulary of {vocab_size}"
        raise DataError(
            f"{name}: token id {low if low < 0 else high} is outside {vocabulary}; is this the model's own tokenizer?"
        )


def check_positions(model_config: Any, sequence_length: int, where: str = "sequence_length") -> None:
    """Raises ConfigError, which names `where`, for windows that are longer than a model's positions.

    Dynamic RoPE has no last one.
    """
    positions = getattr(model_config, "max_position_embeddings", None)
    rope = getattr(model_config, "rope_parameters", None) or {}
    if type(positions) is int and sequence_length > positions and rope.get("rope_type") != "dynamic":
        raise ConfigError(
            f"{where}: {sequence_length} tokens are more than the model's {positions} positions"
            f" (max_position_embeddings); give at most {positions}"
        )


def text_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that a tokenizer itself puts before a text: its BOS, several, or none."""
    for text in ("x", "a", "0", "."):
        bare = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        whole = tokenizer(text, verbose=False)["input_ids"]
        for start in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[start : start + len(bare)] == bare:
                return list(whole[:start])
    return []


def _spans(index: int, text: str, length: int) -> list[_Span]:
    """A document, as its index and where in it; a long one as its parts, each beginning at white space."""
    size = max(PIECE, _PER_TOKEN * length)
    if len(text) <= max(LONG, 2 * size):
        return [(index, 0, len(text))]
    cuts = [0]
    while len(text) - cuts[-1] > 2 * size:
        near = range(cuts[-1] + size, cuts[-1] + 2 * size)
        cuts.append(next((place for place in near if text[place].isspace()), near.start))
    return [(index, start, end) for start, end in pairwise([*cuts, len(text)])]


def shuffled(documents: list[Any], generator: torch.Generator) -> list[Any]:
    """The documents in another order, drawn alike on every machine."""
    order = torch.randperm(len(documents), generator=generator, dtype=torch.int64, device="cpu")
    return [documents[i] for i in order.tolist()]


def _windows(
    documents: Iterable[Tensor], prefix: list[int], name: str, samples: int, length: int, generator: torch.Generator
) -> tuple[Tensor, int, tuple[tuple[int, int], ...]]:
    """Takes one window at a random place of each document in turn, and goes round again while more are needed.

    Returned with them is how many tokens they cover, each place of a document counted once, and the prefix once; and
    of each window its document, by its turn, and its start.
    """
    need, first = length - len(prefix), torch.tensor(prefix, dtype=torch.int64, device="cpu")
    windows: list[Tensor] = []
    usable: list[tuple[Tensor, list[int]]] = []  # documents, and where their windows start
    longest, places = 0, []

    def take(turn: int, document: Tensor, starts: list[int]) -> None:
        start = int(torch.randint(len(document) - need + 1, (1,), generator=generator, dtype=torch.int64, device="cpu"))
        starts.append(start)
        places.append((turn, start))
        windows.append(torch.cat([first, document[start : start + need]]))

    for document in documents:
        longest = max(longest, len(document))
        if len(document) >= need and len(windows) < samples:
            usable.append((document, []))
            take(len(usable) - 1, *usable[-1])
        if len(windows) == samples:
            break
    if not usable:
        raise DataError(
            f"{name}: the longest document has {longest} tokens, a window needs {need}; give longer text or a smaller"
            " sequence_length"
        )
    for turn, (document, starts) in islice(cycle(enumerate(usable)), samples - len(windows)):
        take(turn, document, starts)
    ends = (span for _, starts in usable for span in pairwise([*sorted(starts), math.inf]))
    covered = sum(int(min(after - start, need)) for start, after in ends)
    return torch.stack(windows), covered + len(prefix), tuple(places)
