"""Files, Hub datasets, `datasets.Dataset`s and lists → records and documents."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ..errors import DataError, first_line, quiet
from ..files import parse_json
from ..registry import suggestion
from ..templates import ChatTemplate

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_PREFIX = "hub:"  # hub:id[:config[:split[:column]]]
_PATIENCE = 10  # seconds that the Hub may take to answer
DEFAULT_TEXT = Path(__file__).parent / "calibration.txt"
_RECORD_LOADERS = {".jsonl": "from_json", ".json": "from_json", ".csv": "from_csv", ".parquet": "from_parquet"}
_KINDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a dictionary"}
_LONGEST_PATH, _LONGEST_NAME, _NO_NAME = 4096, 255, {"\n", "\r", "\0"}
# A Hub dataset is streamed: so many documents, shuffled, for calibration, and so many of its first for evaluation.
HUB_DOCUMENTS = 2000
HUB_EVALUATION_DOCUMENTS = 10_000

Record = Mapping[str, Any]


def read_documents(
    source: Any,
    *,
    column: str | None = None,
    seed: int | None = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    option: str = "",
) -> list[str]:
    """Reads the documents of a path, a Hub dataset, strings or a `datasets.Dataset`; `load_calibration` says which.

    Records with a field `messages` (chat) become one document each through the tokenizer's chat template. Of a Hub
    dataset some are read, shuffled by the seed; with `seed=None`, to evaluate on, in order, from the first. Messages
    say by which `option` a caller gives the column, where it can.

    Raises:
        DataError: nothing there, an unknown file type, a missing column, or no text at all.
    """
    limit = HUB_EVALUATION_DOCUMENTS if seed is None else HUB_DOCUMENTS
    records, hub_column = read_records(source, seed=seed, limit=limit)
    column, name = column or hub_column, source_name(source)
    if column is None and "messages" in records[0] and "text" not in records[0]:
        with ChatTemplate(tokenizer, name) as template:
            documents = [template.text(record["messages"]) for record in records]
    else:
        key = text_field(records, name, column, option)
        documents = [text for text in (text_of(record, key, i, name) for i, record in enumerate(records)) if text]
    if not any(text.strip() for text in documents):
        raise DataError(f"{name}: holds no text")
    return documents


def read_records(source: Any, *, seed: int | None = 0, limit: int | None = None) -> tuple[Sequence[Record], str | None]:
    """Reads the records of a source; a text file is one record with the field `text`, and so is each string of a list.

    Args:
        source: as for `load_calibration`, or a list of dictionaries.
        seed: of the order in which a Hub dataset is read; `None`: its own.
        limit: how many records of a Hub dataset are read.

    Returns:
        The records, at least one, and the column that a Hub id names.

    Raises:
        DataError: nothing there, of an unknown type, or empty.
    """
    column = None
    if is_of_hub(source):
        records, column = _read_hub(source, seed, limit)
    elif isinstance(source, (str, Path)):
        records = _read_file(path_of(source))
    elif isinstance(source, Mapping):
        raise DataError(_no_mapping(source))
    elif hasattr(source, "column_names"):
        records = source
    elif isinstance(source, Iterable) and not isinstance(source, bytes):
        records = [{"text": item} if isinstance(item, str) else item for item in source]
        if not all(isinstance(record, Mapping) for record in records):
            raise DataError("a list must hold strings or records; only calibration takes token ids")
    else:
        raise DataError(f"{type(source).__name__}: is no text; pass a path, strings, records or a dataset")
    if not len(records):
        raise DataError(f"{source_name(source)}: holds no text")
    return records, column


def is_of_hub(source: Any) -> bool:
    """Whether a source is the name of a dataset of the Hub."""
    return isinstance(source, str) and source.startswith(HUB_PREFIX)


def path_of(source: str | Path) -> Path:
    """The path that a string names; raises DataError where no file can bear that name, as when a text is given."""
    name = str(source)
    if len(name) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in Path(name).parts) or _NO_NAME & set(name):
        raise DataError(
            f"{name[:40]!r}…: a string of {len(name):,} characters that names no file; a string is a path, or"
            " hub:id[:config[:split[:column]]]; pass text itself in a list: [text]"
        )
    return Path(source)


def _no_mapping(source: Mapping[str, Any]) -> str:
    """What to say of a dictionary."""
    if "input_ids" in source:
        return "token ids are given where text is read; only calibration takes them"
    if source and all(hasattr(value, "column_names") for value in source.values()):
        return f"the dataset holds several splits ({', '.join(source)}); pass one of them"
    return "a dictionary is no text; pass a path, a list of strings or records, or a dataset"


def source_name(source: Any) -> str:
    """A name for records and messages that gives away no folder of this machine."""
    if is_of_hub(source):
        return str(source)
    if isinstance(source, (str, Path)):
        return "optimum_moreau's own text" if source == DEFAULT_TEXT else path_of(source).name
    if hasattr(source, "column_names"):
        return str(getattr(getattr(source, "info", None), "dataset_name", None) or "dataset")
    return "list of strings"


def content_hash(source: str | Path) -> str:
    """sha256 of what a source holds: of a file, of every visible file of a folder, or of a name, as of the Hub."""
    content = str(source).encode(errors="surrogatepass")
    with suppress(DataError):  # it is no path's name
        path = path_of(source).expanduser()
        if path.is_file():
            with path.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            content = "".join(f"{file.name}\0{content_hash(file)}\0" for file in files).encode()
    return hashlib.sha256(content).hexdigest()


def model_reference(name_or_path: str | None) -> str | None:
    """A model's name for records: a Hub id as it is, of a local path the last folder only."""
    if not name_or_path:
        return None
    if PureWindowsPath(name_or_path).drive:  # of another machine
        return PureWindowsPath(name_or_path).name
    path = Path(name_or_path)
    local = path.exists() or path.is_absolute() or len(path.parts) > 2 or name_or_path.startswith((".", "~"))
    return path.resolve().name if local else name_or_path


def text_of(record: Record, key: str, index: int, name: str) -> str:
    """The text in a field of a record, empty where it is missing; raises DataError, naming both, where it is none."""
    text = record.get(key) if isinstance(record, Mapping) else record
    if text is not None and not isinstance(text, str):
        raise DataError(f"{name}: record {index + 1}: '{key}' is {text!r:.40}, no text; put it in quotes, or remove it")
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: record {index + 1}: '{key}' holds half a character (a lone surrogate)") from error
    return text or ""


def text_field(records: Sequence[Record], name: str, column: str | None, option: str = "") -> str:
    """The field that holds the text: the `column` named, or `text`, or the only one of strings.

    Raises:
        DataError: there is none; names those there are, and the `option` that names one, where there is such.
    """
    strings = [key for key, value in records[0].items() if isinstance(value, str) or value is None]
    if column is None:
        column = "text" if "text" in strings or len(strings) != 1 else strings[0]
    if column not in strings:
        hint, found = suggestion(column, strings), ", ".join(strings) or "none"
        advice = f"choose one with {option}" if option else "call the one to read 'text'"
        raise DataError(f"{name}: no text column '{column}'.{hint} Columns of text: {found}; {advice}")
    return column


def check_there(source: Any) -> None:
    """Raises DataError for a path at which no file is; of other sources nothing is looked up."""
    if isinstance(source, (str, Path)) and not is_of_hub(source) and not (path := path_of(source)).is_file():
        raise DataError(f"{path}: no such file; a path, or hub:id[:config[:split[:column]]] for a dataset of the Hub")


def _read_file(path: Path) -> Sequence[Record]:
    check_there(path)
    if path.suffix in _RECORD_LOADERS:
        from datasets import Dataset
        from datasets.exceptions import DatasetGenerationError

        if not path.stat().st_size:
            raise DataError(f"{path.name}: the file is empty")
        if path.suffix != ".parquet":  # datasets would stumble over what is no text row by row
            with _read_errors(path), path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    with _read_errors(path, f" line {number}:"):
                        line.decode("utf-8")
        try:
            with quiet("datasets"):
                return getattr(Dataset, _RECORD_LOADERS[path.suffix])(str(path), keep_in_memory=True)
        except (DatasetGenerationError, ValueError, TypeError, OSError) as error:
            raise DataError(f"{path.name}: {_damage(path)}") from error
    if path.suffix not in ("", ".txt", ".md"):
        raise DataError(f"{path.name}: unknown file type '{path.suffix}'; use .txt, {', '.join(_RECORD_LOADERS)}")
    with _read_errors(path):
        return [{"text": path.read_text(encoding="utf-8")}]


@contextmanager
def _read_errors(path: Path, where: str = "") -> Iterator[None]:
    """What goes wrong as a text is read, somewhere in it, becomes one error."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}:{where} not UTF-8 text ({error.reason} at byte {error.start})") from error


def _damage(path: Path) -> str:
    """What is wrong with a file of records that could not be read, and where, as far as it can be told."""
    found = ""
    try:
        path.open("rb").close()
        if path.suffix == ".json":
            records = parse_json(path.read_bytes(), path.name, "records", DataError)
            found = _odd_record(records) if isinstance(records, list) else "holds no list of records"
        elif path.suffix == ".jsonl":
            lines = enumerate(path.read_bytes().splitlines(), 1)
            found = _odd_record(
                parse_json(line, f"record {number}", "a record", DataError) if line.strip() else {}
                for number, line in lines
            )
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except DataError as error:
        return str(error).removeprefix(f"{path.name}: ")
    return found or f"damaged, or holds no {path.suffix[1:]} records"


def _odd_record(records: Iterable[Any]) -> str:
    """The first record that is no dictionary, or of other kinds of values than those before it, if any."""
    kinds: dict[str, type] = {}
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            return f"record {number}: {record!r:.40} is no dictionary of fields"
        for field, value in record.items():
            kind = kinds.setdefault(field, type(value)) if value is not None else None
            if kind is not None and kind is not type(value):
                before = _KINDS.get(kind, "of another kind")
                return f"record {number}: '{field}' is {value!r:.40}; in the records before it is {before}"
    return ""


def _read_hub(source: str, seed: int | None, limit: int | None) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """The records of a dataset, and the column that its name gives; arguments and errors as for `read_records`."""
    from datasets import load_dataset

    dataset_id, config, split, column = (source.removeprefix(HUB_PREFIX).split(":") + [""] * 4)[:4]
    try:
        with _asked_once(dataset_id), quiet("datasets"), quiet("huggingface_hub"):
            rows = load_dataset(dataset_id, config or None, split=split or "train", streaming=limit is not None)
            if limit is None:
                return rows, column or None
            rows = rows if seed is None else rows.shuffle(seed=seed, buffer_size=limit)
            found = list(islice(rows, limit))
    except Exception as error:  # datasets raises many types; each is "this dataset cannot be had"
        raise DataError(f"{source}: cannot be loaded ({_reason(error)})") from error
    if seed is None and len(found) == limit:
        logger.warning("%s: only its first %s documents are read", source, f"{limit:,}")
    return found, column or None


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    if "OfflineModeIsEnabled" in words:
        return "it is not in the cache, and the Hub cannot be reached"
    if words.startswith("Config name is missing"):
        known = words.partition("available configs:")[2].partition(" Example")[0]
        return f"give one of its configs, hub:id:config:{known}"
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _asked_once(dataset_id: str) -> Iterator[None]:
    """Where the Hub cannot be reached, datasets does not ask it again and again within the block."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not (Path(dataset_id).exists() or _asked(dataset_id)[0]):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _asked(dataset_id: str) -> tuple[bool, str | None]:
    """Whether the Hub says anything at all of a dataset, be it that there is none; and its commit."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with quiet("huggingface_hub"):
            return True, HfApi().dataset_info(dataset_id, timeout=_PATIENCE).sha
    except (HfHubHTTPError, HFValidationError):
        return True, None
    except (httpx2.TransportError, OSError):
        return False, None


def dataset_commit(source: str) -> str | None:
    """The commit of `hub:id[…]` that would be read; `None` where the Hub cannot be asked."""
    return _asked(source.removeprefix(HUB_PREFIX).split(":")[0])[1]
