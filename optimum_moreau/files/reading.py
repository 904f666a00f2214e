"""The one reader of this package's small files: JSON, YAML, and safetensors apart from weights.

A file may come from anywhere. What is read is bounded in size and depth, and holds finite numbers and valid text only.
Whatever is wrong becomes one line: the file, the field, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, MoreauError, first_line

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON_BYTES = 256 * 2**20  # a plan of 405B parameters takes 40 MB
MAX_YAML_BYTES = 2**20
MAX_TEXT_BYTES = 2**24
MAX_YAML_VALUES = 100_000  # an alias counts as often as it is used
MAX_DEPTH = 64
LARGEST = 2**63 - 1  # whole number: what a tensor can hold
LARGEST_OF_TRANSFORMERS = 10**31  # it writes 10³⁰ for a tokenizer without a longest text
_DIGITS = 400  # of a number in YAML; every finite float64 has fewer
_SHOWN = 60  # characters of a wrong value in a message


class _Loader(yaml.SafeLoader):
    """A SafeLoader without what makes much of little: merged aliases, endless numbers, endless values."""

    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values += 1
        if self.values > MAX_YAML_VALUES:
            raise yaml.YAMLError(f"more than {MAX_YAML_VALUES:,} values")
        node = super().compose_node(parent, index)
        if node.tag.endswith((":int", ":float")) and len(node.value) > _DIGITS:
            raise yaml.YAMLError("a number is too long")
        return node

    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag.endswith(":merge") for key, _ in node.value):
            raise yaml.YAMLError("'<<' is not read here; write the values out")


def read_json(
    path: str | Path, what: str, error: type[MoreauError] = CheckpointError, *, largest: int = LARGEST
) -> Any:
    """Reads a JSON file.

    Args:
        path: of the file.
        what: it should be, for messages: `a pruning plan`.
        error: the kind that is raised.
        largest: whole number that it may hold.

    Raises:
        MoreauError: of that kind: it is missing, too large, too deep, no JSON in UTF-8, or holds what is no value.
    """
    return parse_json(_bytes(Path(path), what, error, MAX_JSON_BYTES), path, what, error, largest=largest)


def parse_json(
    data: bytes | str, where: object, what: str, error: type[MoreauError] = CheckpointError, *, largest: int = LARGEST
) -> Any:
    """Reads JSON that lies inside something else; `where` is named in messages, the rest as for `read_json`."""
    try:
        values = from_json(data, allow_inf_nan=False)
    except (ValueError, TypeError) as problem:  # deep nesting, huge integers, lone surrogates, wrong encodings too
        raise error(f"{where}: cannot be read as {what}: not JSON ({first_line(problem)})") from problem
    _check_values(values, where, what, error, largest=largest)
    return values


def read_lines(
    path: str | Path, what: str, error: type[MoreauError] = CheckpointError, *, longest: int
) -> Iterator[tuple[int, Any]]:
    """Reads lines of JSON, of `longest` bytes at most, one by one: a file of any length takes the memory of one line.

    Yields:
        The number of each line that is not blank, from 1, and what it holds.

    Raises:
        MoreauError: of that kind: as for `read_json`; it says of which line.
    """
    found = _file(Path(path), what, error)
    try:
        with found.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(longest + 1), b""), 1):
                if len(line) > longest:
                    raise error(f"{path}: line {number}: cannot be read as {what}: more than {longest:,} bytes")
                if line.strip():
                    yield number, parse_json(line, f"{path}: line {number}", what, error)
    except MoreauError:
        raise
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from problem


def read_text(
    path: str | Path, what: str, error: type[MoreauError] = CheckpointError, *, most: int = MAX_TEXT_BYTES
) -> str:
    """Reads a text in UTF-8 of `most` bytes; other arguments and errors as for `read_json`."""
    try:
        return _bytes(Path(path), what, error, most).decode("utf-8")
    except UnicodeDecodeError as problem:
        words = f"not UTF-8 text ({problem.reason} at byte {problem.start})"
        raise error(f"{path}: cannot be read as {what}: {words}") from problem


def read_yaml(path: str | Path, what: str, error: type[MoreauError] = CheckpointError) -> Any:
    """Reads a YAML file of plain values; arguments and errors as for `read_json`."""
    data = _bytes(Path(path), what, error, MAX_YAML_BYTES)
    odd = (ValueError, RecursionError, TypeError, AttributeError, LookupError, OverflowError)  # values under a tag
    try:
        values = yaml.load(data.decode("utf-8"), _Loader)  # a SafeLoader
    except (yaml.YAMLError, *odd) as problem:
        mark, words = getattr(problem, "problem_mark", None), getattr(problem, "problem", None)
        words = f"{words}, line {mark.line + 1}" if mark and words else first_line(problem)
        raise error(f"{path}: cannot be read as {what}: no YAML ({words})") from problem
    _check_values(values, path, what, error, most=MAX_YAML_VALUES)
    return values


def read_tensors(
    path: str | Path, what: str, error: type[MoreauError] = CheckpointError
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads name → tensor, and the metadata, of a safetensors file; arguments and errors as for `read_json`."""
    with _opened(path, what, error) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (a file)


def read_shapes(path: str | Path, what: str, error: type[MoreauError] = CheckpointError) -> dict[str, tuple[int, ...]]:
    """Reads name → shape of a safetensors file, which is as long as its head says; the rest as for `read_json`."""
    with _opened(path, what, error) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (a file)


@contextmanager
def _opened(path: str | Path, what: str, error: type[MoreauError]) -> Iterator[Any]:
    """A safetensors file, open; whatever is wrong with it becomes one error."""
    found = _file(Path(path), what, error)
    try:
        with safe_open(found, "pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as problem:
        raise error(f"{path}: cannot be read as {what}: no safetensors ({first_line(problem)})") from problem


def _file(path: Path, what: str, error: type[MoreauError]) -> Path:
    """The path of a file that is there."""
    try:
        path = path.expanduser()
        if path.is_file():
            return path
        found = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "no such file"
    except (OSError, RuntimeError) as problem:  # no right to look, a name too long; no home
        found = f"cannot be read ({getattr(problem, 'strerror', None) or problem})"
    raise error(f"{path}: {found}; give {what}")


def _bytes(path: Path, what: str, error: type[MoreauError], most: int) -> bytes:
    path = _file(path, what, error)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from problem
    if len(data) > most:
        size = f"{most // 2**20} MiB" if most >= 2**20 else f"{most:,} bytes"
        raise error(f"{path}: cannot be read as {what}: more than {size}")
    return data


def _check_values(
    values: Any, where: object, what: str, error: type[MoreauError], *, most: int = LARGEST, largest: int = LARGEST
) -> None:
    """Refuses what JSON has no value for, and more of it than can be meant."""
    if found := _problem(values, repeat(None, most), largest, 0):
        field, problem = ".".join(reversed(found[0]))[:_SHOWN], found[1] or f"more than {most:,} values"
        raise error(f"{where}: cannot be read as {what}: {field and f'{field}: '}{problem}")


def _problem(value: Any, left: Iterator[None], largest: int, depth: int) -> tuple[list[str], str] | None:
    """What is wrong within a value, and the way to it, from the inside outwards; `left` yields once for each value."""
    if next(left, 0) == 0:
        return [], ""
    if not isinstance(value, (dict, list)):
        words = _problem_of_one(value, largest)
        return ([], words) if words else None
    if depth == MAX_DEPTH:
        return [], f"nested more than {MAX_DEPTH} deep"
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if type(inner) is int and -largest <= inner <= largest and isinstance(value, list) and next(left, 0) is None:
            continue  # most of a plan
        if isinstance(value, dict) and not (isinstance(key, str) and _is_text(key)):
            return [], f"{shown(key)} is no name"
        if found := _problem(inner, left, largest, depth + 1):
            found[0].append(str(key)[:_SHOWN])
            return found
    return None


def _problem_of_one(value: Any, largest: int) -> str:
    if isinstance(value, str):
        return "" if _is_text(value) else "holds half a character (a lone surrogate)"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} is no finite number"
    if isinstance(value, int):
        return "" if abs(value) <= largest else "the number is too large"
    return "" if value is None else f"{shown(value)} is no plain value"


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A wrong value in a message, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
