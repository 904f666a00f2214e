"""Text, files, datasets, tokens → seeded windows of token ids, with a content hash.

A window lies inside one document and is never padded; with a tokenizer that has a BOS token it starts with it. A text
file is one document; of a file of records, each row is one. Documents too short for a window are skipped.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import CalibrationError, first_line, quiet
from .registry import suggestion

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEFAULT_TEXT = Path(__file__).parent / "data" / "calibration.txt"
_RECORD_LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_HUB_PREFIX = "hub:"
_HUB_DOCUMENTS = 2000  # of a Hub dataset, which is streamed: this many documents, shuffled

Source = "str | Path | Iterable[str] | Dataset | Tensor | None"


@dataclass(frozen=True)
class CalibrationSet:
    """Calibration windows and where they come from.

    Attributes:
        tokens: int64 tensor `(samples, sequence_length)` on CPU.
        source: name of the file or dataset, without folders.
        seed: the windows were drawn with.
        sha256: of the token ids, little-endian int64.
    """

    tokens: Tensor
    source: str
    seed: int
    sha256: str

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
        column: text column of a file of records or a dataset; default `text`, or the only column of strings.
        vocab_size: of the model, to check the ids against.

    Raises:
        CalibrationError: the source is missing, empty or too short; a column is missing; ids outside the vocabulary.
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
            raise CalibrationError("a tokenizer is needed to read text: MoreauPruner(config, tokenizer=tokenizer)")
        texts = _shuffled(read_documents(source, column=column, seed=seed), generator)
        documents = (tokenize(text, tokenizer) for text in texts)
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        name = source_name(source)
    tokens = _windows(documents, bos, name, samples, sequence_length, generator)
    check_vocabulary(tokens, vocab_size, name)
    digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
    return CalibrationSet(tokens, name, seed, digest)


def check_vocabulary(tokens: Tensor, vocab_size: int | None, name: str) -> None:
    """Raises CalibrationError where a token id, of the text called `name`, is outside a model's vocabulary."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        vocabulary = "any vocabulary" if vocab_size is None else f"the model's vocabulary of {vocab_size}"
        raise CalibrationError(
            f"{name}: token id {low if low < 0 else high} is outside {vocabulary}; is this the model's own tokenizer?"
        )


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Returns the ids of a text, `(length,)`, without special tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def read_documents(source: Any, *, column: str | None = None, seed: int = 0) -> list[str]:
    """Reads the documents of a path, a Hub dataset, strings or a `datasets.Dataset`; `load_calibration` says which.

    Raises:
        CalibrationError: nothing there, an unknown file type, a missing column, or no text at all.
    """
    if isinstance(source, str) and source.startswith(_HUB_PREFIX):
        documents = _read_hub(source, column, seed)
    elif isinstance(source, (str, Path)):
        documents = _read_file(Path(source), column)
    elif isinstance(source, dict):
        raise CalibrationError(f"calibration: holds several splits ({', '.join(source)}); pass one of them")
    elif hasattr(source, "column_names"):
        documents = _read_dataset(source, source_name(source), column)
    else:
        documents = list(source)
        if not all(isinstance(text, str) for text in documents):
            raise CalibrationError("calibration: a list must hold strings; pass token ids as one tensor")
    if not any(text.strip() for text in documents):
        raise CalibrationError(f"{source_name(source)}: holds no text")
    return documents


def source_name(source: Any) -> str:
    """A name for records and messages that gives away no folder of this machine."""
    if isinstance(source, str) and source.startswith(_HUB_PREFIX):
        return source
    if isinstance(source, (str, Path)):
        return "optimum_moreau's own text" if source == DEFAULT_TEXT else Path(source).name
    if hasattr(source, "column_names"):
        return str(getattr(getattr(source, "info", None), "dataset_name", None) or "dataset")
    return "token ids" if isinstance(source, Tensor) else "list of strings"


def _read_file(path: Path, column: str | None) -> list[str]:
    if not path.is_file():
        raise CalibrationError(
            f"{path}: no such file; a path, or hub:id[:config[:split[:column]]] for a dataset of the Hub"
        )
    if path.suffix in _RECORD_LOADERS:
        from datasets import Dataset
        from datasets.exceptions import DatasetGenerationError

        if not path.stat().st_size:
            raise CalibrationError(f"{path.name}: the file is empty")
        loader = {"json": Dataset.from_json, "csv": Dataset.from_csv, "parquet": Dataset.from_parquet}
        try:
            with quiet("datasets"):
                rows = loader[_RECORD_LOADERS[path.suffix]](str(path), keep_in_memory=True)
        except (DatasetGenerationError, ValueError, OSError) as error:
            raise CalibrationError(f"{path.name}: damaged, or holds no {path.suffix[1:]} records") from error
        return _read_dataset(rows, path.name, column)
    if path.suffix not in ("", ".txt", ".md"):
        raise CalibrationError(
            f"{path.name}: unknown file type '{path.suffix}'; use .txt, {', '.join(_RECORD_LOADERS)}"
        )
    try:
        return [path.read_text(encoding="utf-8")]
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _read_dataset(rows: Dataset, name: str, column: str | None) -> list[str]:
    return [text for text in rows[_text_column(rows, name, column)] if text]


def _text_column(rows: Any, name: str, column: str | None) -> str:
    features = rows.features or {key: None for key in next(iter(rows))}
    strings = [
        key for key, feature in features.items() if getattr(feature, "dtype", "string") in ("string", "large_string")
    ]
    if column is None:
        column = "text" if "text" in strings or len(strings) != 1 else strings[0]
    if column not in strings:
        hint = suggestion(column, strings)
        raise CalibrationError(
            f"{name}: no text column '{column}'.{hint} Columns of text: {', '.join(strings) or 'none'}; choose one with"
            " calibration_column (--calibration-column, --text-column)"
        )
    return column


def _read_hub(source: str, column: str | None, seed: int) -> list[str]:
    from datasets import load_dataset

    parts = source.removeprefix(_HUB_PREFIX).split(":")
    dataset_id, config, split, hub_column = (parts + [""] * 4)[:4]
    try:
        rows = load_dataset(dataset_id, config or None, split=split or "train", streaming=True)
        rows = rows.shuffle(seed=seed, buffer_size=_HUB_DOCUMENTS)
        key = _text_column(rows, source, hub_column or column)
        return [row[key] for row in islice(rows, _HUB_DOCUMENTS) if row[key]]
    except CalibrationError:
        raise
    except Exception as error:  # datasets raises many types; each is "this dataset cannot be had"
        raise CalibrationError(f"{source}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error


def _token_documents(tokens: Tensor) -> Iterator[Tensor]:
    if tokens.dim() not in (1, 2) or tokens.is_floating_point() or not tokens.numel():
        raise CalibrationError(
            f"token ids: {tuple(tokens.shape)} of {tokens.dtype}; pass integers, (length,) or (documents, length)"
        )
    yield from tokens.reshape(-1, tokens.shape[-1]).to("cpu", torch.int64)


def _shuffled(documents: list[Any], generator: torch.Generator) -> list[Any]:
    return [documents[i] for i in torch.randperm(len(documents), generator=generator).tolist()]


def _windows(
    documents: Iterable[Tensor], bos: list[int], name: str, samples: int, length: int, generator: torch.Generator
) -> Tensor:
    """Takes one window at a random place of each document in turn, and goes round again while more are needed."""
    need = length - len(bos)
    windows: list[Tensor] = []
    usable: list[Tensor] = []
    longest = 0

    def take(document: Tensor) -> None:
        start = int(torch.randint(len(document) - need + 1, (1,), generator=generator))
        windows.append(torch.cat([torch.tensor(bos, dtype=torch.int64), document[start : start + need]]))

    for document in documents:
        longest = max(longest, len(document))
        if len(document) >= need and len(windows) < samples:
            usable.append(document)
            take(document)
        if len(windows) == samples:
            break
    if not usable:
        raise CalibrationError(
            f"{name}: the longest document has {longest} tokens, a window needs {need}; give longer text or a smaller"
            " sequence_length"
        )
    for i in range(samples - len(windows)):
        take(usable[i % len(usable)])
    return torch.stack(windows)
