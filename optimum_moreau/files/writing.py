"""The one writer of this package's small files: what is written is whole, or not there."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..errors import CheckpointError, MoreauError, first_line
from .reading import LARGEST, parse_json
from .temporary import collect_partial, partial_file, partial_folder, reason

if TYPE_CHECKING:
    from torch import Tensor

_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")


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


def write_json(
    path: str | Path, values: Any, error: type[MoreauError] = CheckpointError, *, largest: int = LARGEST
) -> None:
    """Writes values as JSON, as `write_text` does; nothing that `read_json` would refuse (NaN), of that `largest`."""
    try:
        text = json.dumps(values, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(f"{path}: cannot be written ({first_line(problem)})") from problem
    parse_json(text, path, "what can be written as JSON", error, largest=largest)
    write_text(path, text, error)


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    error: type[MoreauError] = CheckpointError,
) -> None:
    """Writes contiguous tensors by name as safetensors, readable as widely as other files, as `write_bytes` does."""
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


def _write_device(path: str, data: bytes) -> None:
    if not _DESCRIPTOR.fullmatch(path):
        target = os.open(path, os.O_WRONLY)
    else:  # opened anew, a file behind it would be truncated, and what is printed later written over its beginning
        target = os.dup({"stdout": 1, "stderr": 2}.get(name := path.rsplit("/", 1)[1]) or int(name))
    with open(target, "wb") as file:
        file.write(data)


def _replace(partial: Path, target: Path) -> None:
    if target.exists():
        shutil.copymode(target, partial)  # what was private stays so
    try:
        partial.replace(target)
    except OSError as problem:
        if problem.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        shutil.copyfile(partial, target)  # a file that is mounted can only be filled
