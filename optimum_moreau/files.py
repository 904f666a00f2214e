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
import shutil
from collections.abc import Hashable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .errors import CheckpointError, MoreauError, first_line
from .registry import suggestion
from .temporary import collect_partial, partial_file, partial_folder, reason

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from torch import Tensor

T = TypeVar("T")

MAX_JSON_BYTES = 256 * 2**20  # a plan of 405B parameters takes 40 MB
MAX_YAML_BYTES = 2**20
MAX_DEPTH = 64
MAX_YAML_VALUES = 100_000  # an alias counts as often as it is used
_SHOWN = 60  # characters of a wrong value in a message


def read_json(path: str | Path, what: str, error: type[MoreauError] = CheckpointError) -> Any:
    """Reads a JSON file.

    Args:
        path: of the file.
        what: it should be, for messages: `a pruning plan`.
        error: the kind that is raised.

    Raises:
        MoreauError: of that kind: it is missing, too large, too deep, no JSON in UTF-8, or holds what is no value.
    """
    return parse_json(_bytes(Path(path), what, error, MAX_JSON_BYTES), path, what, error)


def parse_json(data: bytes | str, where: object, what: str, error: type[MoreauError] = CheckpointError) -> Any:
    """Reads JSON that lies inside something else; `where` is named in messages, the rest as for `read_json`."""
    from pydantic_core import from_json

    try:
        values = from_json(data, allow_inf_nan=False)
    except ValueError as problem:  # deep nesting, huge integers, lone surrogates and wrong encodings too
        raise error(f"{where}: is not {what}: no JSON that can be read ({first_line(problem)})") from problem
    _check_values(values, where, what, error)
    return values


def read_yaml(path: str | Path, what: str, error: type[MoreauError] = CheckpointError) -> Any:
    """Reads a YAML file of plain values; arguments and errors as for `read_json`."""
    import yaml

    data = _bytes(Path(path), what, error, MAX_YAML_BYTES)
    try:
        values = yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, OverflowError) as problem:
        raise error(f"{path}: is not {what}: no YAML that can be read ({first_line(problem)})") from problem
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

    if not Path(path).is_file():
        raise error(f"{path}: no such file; give {what}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as problem:
        raise error(f"{path}: is not {what}: no safetensors that can be read ({first_line(problem)})") from problem


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
        raise error(f"{where}: is not {what}: {_shown(values)} is no dictionary")
    known = [one.name for one in fields(kind) if one.init]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise error(f"{where}: is not {what}: unknown field {_shown(name)}.{suggestion(name, known)}")
    try:
        made: T = _adapter(cast(Hashable, kind)).validate_json(json.dumps(values), strict=True)
        return made
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "it"
        value = "" if first["type"] == "missing" else f", not {_shown(first['input'])}"
        words = first["msg"][:1].lower() + first["msg"][1:]
        raise error(f"{where}: is not {what}: {field}: {words}{value}") from problem


def write_bytes(path: str | Path, data: bytes, error: type[MoreauError] = CheckpointError) -> None:
    """Writes a file whole or not at all: beside its place first, then renamed.

    Raises:
        MoreauError: of the kind given: it cannot be written; what was there stays.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():  # such as /dev/stdout: nothing to replace
            target.write_bytes(data)
            return
        target = target.resolve()  # what a link points at is replaced, not the link
        collect_partial(target.parent, target.name)
        with partial_file(target.parent, target.name) as partial:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _replace(partial, target)
    except (OSError, RuntimeError) as problem:  # RuntimeError: a link that points at itself
        raise error(f"{path}: cannot be written ({reason(problem)})") from problem


def write_text(path: str | Path, text: str, error: type[MoreauError] = CheckpointError) -> None:
    """Writes a text in UTF-8, as `write_bytes` does."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as problem:  # half a character
        raise error(f"{path}: cannot be written ({problem.reason})") from problem
    write_bytes(path, data, error)


def write_json(path: str | Path, values: Any, error: type[MoreauError] = CheckpointError, *, indent: int = 2) -> None:
    """Writes values as JSON, as `write_text` does."""
    write_text(path, json.dumps(values, indent=indent) + "\n", error)


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
    try:
        partial.replace(target)
    except OSError as problem:
        if problem.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        shutil.copyfile(partial, target)  # a file that is mounted can only be filled


def _bytes(path: Path, what: str, error: type[MoreauError], most: int) -> bytes:
    path = path.expanduser()
    if not path.is_file():
        raise error(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give {what}")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from problem
    if len(data) > most:
        raise error(f"{path}: is not {what}: more than {most // 2**20} MiB")
    return data


def _check_values(values: Any, where: object, what: str, error: type[MoreauError], most: float = math.inf) -> None:
    """Refuses what JSON has no value for, and more of it than can be meant."""
    stack: list[tuple[str, Any, int]] = [("", values, 0)]
    seen = 0
    while stack:
        field, value, depth = stack.pop()
        seen += 1
        problem = ""
        if depth > MAX_DEPTH or seen > most:
            problem = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"more than {most:,} values"
        elif isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str) or not _is_text(key):
                    problem = f"{_shown(key)} is no name"
                    break
                stack.append((f"{field}.{key}" if field else key, inner, depth + 1))
        elif isinstance(value, list):
            stack.extend((f"{field}.{i}", inner, depth + 1) for i, inner in enumerate(value))
        elif isinstance(value, str):
            problem = "" if _is_text(value) else "holds half a character (a lone surrogate)"
        elif isinstance(value, float):
            problem = "" if math.isfinite(value) else f"{value} is no finite number"
        elif isinstance(value, int):
            problem = "" if abs(value) < 2**63 else "the number is too large"
        elif value is not None:
            problem = f"{_shown(value)} is no plain value"
        if problem:
            raise error(f"{where}: is not {what}: {f'{field[:_SHOWN]}: ' if field else ''}{problem}")


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cast(type, kind))
