"""The one reader and the one writer of this package's small files: JSON, YAML, and safetensors apart from weights.

A file may come from anywhere. What is read is bounded in size and depth, holds finite numbers and valid text only, and
where it fills a dataclass, every field has the type that is declared there. Whatever is wrong becomes one line: the
file, the field, and what to do. What is written is whole, or not there.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import CheckpointError, MoreauError, first_line
from ..registry import suggestion
from .temporary import collect_partial, partial_file, partial_folder, reason

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from torch import Tensor

T = TypeVar("T")

MAX_JSON_BYTES = 256 * 2**20  # a plan of 405B parameters takes 40 MB
MAX_YAML_BYTES = 2**20
MAX_TEXT_BYTES = 2**24
MAX_DEPTH = 64
MAX_YAML_VALUES = 100_000  # an alias counts as often as it is used
LARGEST = 2**63 - 1  # whole number: what a tensor can hold
LARGEST_OF_TRANSFORMERS = 10**31  # it writes 10³⁰ for a tokenizer without a longest text
_SHOWN = 60  # characters of a wrong value in a message
_DIGITS = 400  # of a number in YAML; every finite float64 has fewer
_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")


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
    data: bytes | str,
    where: object,
    what: str,
    error: type[MoreauError] = CheckpointError,
    *,
    largest: int = LARGEST,
) -> Any:
    """Reads JSON that lies inside something else; `where` is named in messages, the rest as for `read_json`."""
    from pydantic_core import from_json

    try:
        values = from_json(data, allow_inf_nan=False)
    except (ValueError, TypeError) as problem:  # deep nesting, huge integers, lone surrogates, wrong encodings too
        raise error(f"{where}: cannot be read as {what}: not JSON ({first_line(problem)})") from problem
    _check_values(values, where, what, error, largest=largest)
    return values


def read_lines(
    path: str | Path, what: str, error: type[MoreauError] = CheckpointError, *, longest: int
) -> Iterator[tuple[int, Any]]:
    """Reads lines of JSON one by one, so that a file of any length takes the memory of one line.

    Args:
        path: of the file.
        what: each line should be.
        error: the kind that is raised.
        longest: bytes of a line, at most.

    Yields:
        The number of each line that is not blank, from 1, and what it holds.

    Raises:
        MoreauError: of that kind: as for `read_json`; it says of which line.
    """
    number, found = 0, _file(Path(path), what, error)
    try:
        with found.open("rb") as lines:
            while line := lines.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise error(f"{path}: line {number}: cannot be read as {what}: more than {longest:,} bytes")
                if line.strip():
                    yield number, parse_json(line, f"{path}: line {number}", what, error)
    except OSError as problem:
        if isinstance(problem, MoreauError):
            raise
        raise error(f"{path}: cannot be read ({problem.strerror})") from problem


def read_text(
    path: str | Path, what: str, error: type[MoreauError] = CheckpointError, *, most: int = MAX_TEXT_BYTES
) -> str:
    """Reads a text in UTF-8 of `most` bytes; other arguments and errors as for `read_json`."""
    data = _bytes(Path(path), what, error, most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        words = f"not UTF-8 text ({problem.reason} at byte {problem.start})"
        raise error(f"{path}: cannot be read as {what}: {words}") from problem


def read_yaml(path: str | Path, what: str, error: type[MoreauError] = CheckpointError) -> Any:
    """Reads a YAML file of plain values; arguments and errors as for `read_json`."""
    import yaml

    data = _bytes(Path(path), what, error, MAX_YAML_BYTES)
    odd = (ValueError, RecursionError, TypeError, AttributeError, LookupError, OverflowError)  # values under a tag
    try:
        values = yaml.load(data.decode("utf-8"), _yaml_loader())  # a SafeLoader
    except (yaml.YAMLError, *odd) as problem:
        mark, words = getattr(problem, "problem_mark", None), getattr(problem, "problem", None)
        words = f"{words}, line {mark.line + 1}" if mark and words else first_line(problem)
        raise error(f"{path}: cannot be read as {what}: no YAML ({words})") from problem
    _check_values(values, path, what, error, most=MAX_YAML_VALUES)
    return values


def read_tensors(
    path: str | Path, what: str, error: type[MoreauError] = CheckpointError
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file; arguments and errors as for `read_json`.

    Returns:
        Name → tensor on the CPU, and the metadata of the file's head.
    """
    from safetensors import SafetensorError, safe_open

    found = _file(Path(path), what, error)
    try:
        with safe_open(found, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as problem:
        raise error(f"{path}: cannot be read as {what}: no safetensors ({first_line(problem)})") from problem


def read_shapes(path: str | Path, what: str, error: type[MoreauError] = CheckpointError) -> dict[str, tuple[int, ...]]:
    """Reads the head of a safetensors file, which must be as long as it says; arguments and errors as for `read_json`.

    Returns:
        Name → shape.
    """
    from safetensors import SafetensorError, safe_open

    found = _file(Path(path), what, error)
    try:
        with safe_open(found, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (a file)
    except (SafetensorError, OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read as {what}: no safetensors ({first_line(problem)})") from problem


def filled(kind: type[T], values: Any, where: object, what: str, error: type[MoreauError] = CheckpointError) -> T:
    """Makes a dataclass of values that were read; every field, nested ones too, has the type that it is declared with.

    Args:
        kind: the dataclass.
        values: of its fields, as JSON holds them.
        where: the file, for messages.
        what: as for `read_json`.
        error: the kind that is raised.

    Raises:
        MoreauError: of that kind: a field is missing, unknown, or of another type.
    """
    from pydantic import ValidationError

    if not isinstance(values, Mapping):
        raise error(f"{where}: cannot be read as {what}: {_shown(values)} is no dictionary")
    known = [one.name for one in fields(kind) if one.init]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise error(
                f"{where}: cannot be read as {what}: unknown field {_shown(name)}.{suggestion(str(name), known)}"
            )
    try:
        text = json.dumps([dict(values)])
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(
            f"{where}: cannot be read as {what}: holds what JSON has no value for ({first_line(problem)})"
        ) from problem
    try:
        made: T = _adapter(cast(Hashable, kind)).validate_json(text)[0]
        return made
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "it"
        value = "" if first["type"] == "missing" else f", not {_shown(first['input'])}"
        words = first["msg"][:1].lower() + first["msg"][1:]
        if first["type"] == "value_error":  # of the dataclass's own check
            raise error(f"{where}: {first['ctx']['error']}") from problem
        if first["type"] == "unexpected_keyword_argument":
            words, value = "is no field of it", ""
        raise error(f"{where}: cannot be read as {what}: {field}: {words}{value}") from problem


def write_bytes(path: str | Path, data: bytes, error: type[MoreauError] = CheckpointError) -> None:
    """Writes a file whole or not at all: beside its place first, then renamed.

    A symbolic link stays one: what it points to is replaced. Devices, `/dev/stdout` and its like are written to as
    they are.

    Raises:
        MoreauError: of the kind given: it cannot be written; what was there stays.
    """
    try:
        if _DESCRIPTOR.fullmatch(str(path)) or (Path(path).exists() and not Path(path).is_file()):
            _write_device(str(path), data)
            return
        target = Path(path).resolve()  # what a link points at is replaced, not the link
        collect_partial(target.parent, target.name)
        with partial_file(target.parent, target.name) as partial:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _replace(partial, target)
    except (OSError, ValueError, RuntimeError) as problem:  # a zero byte; links in a ring
        raise error(f"{path}: cannot be written ({reason(problem)})") from problem


def write_text(path: str | Path, text: str, error: type[MoreauError] = CheckpointError) -> None:
    """Writes a text in UTF-8, as `write_bytes` does."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as problem:  # half a character
        raise error(f"{path}: cannot be written ({problem.reason})") from problem
    write_bytes(path, data, error)


def _write_device(path: str, data: bytes) -> None:
    if not _DESCRIPTOR.fullmatch(path):
        target = os.open(path, os.O_WRONLY)
    else:  # opened anew, a file behind it would be truncated, and what is printed later written over its beginning
        target = os.dup({"stdout": 1, "stderr": 2}.get(name := path.rsplit("/", 1)[1]) or int(name))
    with open(target, "wb") as file:
        file.write(data)


def write_json(
    path: str | Path,
    values: Any,
    error: type[MoreauError] = CheckpointError,
    *,
    indent: int = 2,
    largest: int = LARGEST,
) -> None:
    """Writes values as JSON, as `write_text` does; nothing that `read_json` would refuse, of the same `largest`.

    Raises:
        MoreauError: of the kind given: it cannot be written, or JSON has no such value (NaN); what was there stays.
    """
    try:
        text = json.dumps(values, indent=indent) + "\n"
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(f"{path}: cannot be written ({first_line(problem)})") from problem
    parse_json(text, path, "what can be written as JSON", error, largest=largest)
    write_text(path, text, error)


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


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    error: type[MoreauError] = CheckpointError,
) -> None:
    """Writes tensors as safetensors, readable as widely as other files; as `write_bytes` does.

    Args:
        path: of the file.
        tensors: name → contiguous tensor.
        metadata: of the file's head.
        error: the kind that is raised.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = Path(path).resolve()
    try:
        collect_partial(target.parent, target.name)
        with partial_folder(target.parent, target.name) as partial:  # safetensors has a file of its own beside it
            file = partial / "tensors"
            save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
            file.chmod(partial.stat().st_mode & 0o666)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            _replace(file, target)
    except (OSError, SafetensorError) as problem:
        raise error(f"{path}: cannot be written ({reason(problem)})") from problem


def _replace(partial: Path, target: Path) -> None:
    if target.exists():
        shutil.copymode(target, partial)  # what was private stays so
    try:
        partial.replace(target)
    except OSError as problem:
        if problem.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        shutil.copyfile(partial, target)  # a file that is mounted can only be filled


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
    values: Any,
    where: object,
    what: str,
    error: type[MoreauError],
    *,
    most: int | None = None,
    largest: int = LARGEST,
) -> None:
    """Refuses what JSON has no value for, and more of it than can be meant."""
    left: Iterator[None] = repeat(None) if most is None else repeat(None, most)
    if found := _problem(values, left, largest, 0):
        field, problem = ".".join(reversed(found[0])), found[1]
        problem = problem or f"more than {most:,} values"
        raise error(f"{where}: cannot be read as {what}: {f'{field[:_SHOWN]}: ' if field else ''}{problem}")


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
            return [], f"{_shown(key)} is no name"
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
    return "" if value is None else f"{_shown(value)} is no plain value"


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    """Of a list of one: a list hands its settings on to the dataclass in it, and to those nested there."""
    from pydantic import ConfigDict, TypeAdapter

    settings = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(list[cast(type, kind)], config=settings)  # type: ignore[arg-type, misc]


@cache
def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
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

    return Loader
