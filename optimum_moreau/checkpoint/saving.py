"""Writes a folder all or nothing: beside its target first, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError


def check_target(folder: str | Path, *, overwrite: bool = False) -> Path:
    """Refuses, before any work is done, a target that could not be written in the end; returns its full path.

    Args:
        folder: the folder to be written.
        overwrite: a non-empty one may be replaced, if it holds a model.

    Raises:
        CheckpointError: not a folder, not empty, or not writable.
    """
    path = Path(folder).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{folder}: is a file; give a folder")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise CheckpointError(f"{folder}: is not empty; choose another folder, or overwrite (--overwrite)")
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{folder}: holds no model (config.json); overwriting replaces saved models only")
    parent = next(ancestor for ancestor in path.parents if ancestor.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{folder}: cannot be written, {parent} is not a writable folder")
    return path


def check_file(file: str | Path, *, overwrite: bool = False) -> None:
    """Refuses, before any work is done, a file that could not be written in the end.

    Raises:
        CheckpointError: it is a folder, exists and may not be replaced, or its folder is missing or not writable.
    """
    path = Path(file).expanduser()
    if path.is_file() and not overwrite:
        raise CheckpointError(f"{file}: exists; choose another file, or overwrite (--overwrite)")
    if path.is_dir():
        raise CheckpointError(f"{file}: is a folder; give a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise CheckpointError(f"{file}: cannot be written, {path.parent} is not a writable folder")


@contextmanager
def save_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside the target, which takes the target's place when the block ends without error.

    Raises:
        CheckpointError: the target may not or cannot be written; nothing is left behind, an old folder stays as it was.
    """
    target = check_target(folder, overwrite=overwrite)
    mark = uuid.uuid4().hex[:8]
    partial = target.with_name(f".{target.name}.partial-{mark}")
    replaced = target.with_name(f".{target.name}.replaced-{mark}")
    missing = [ancestor for ancestor in target.parents if not ancestor.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}; nothing was saved") from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{folder}: cannot be written ({reason}); nothing was saved") from error
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        with suppress(OSError):  # not empty: the target is there
            for ancestor in missing:
                ancestor.rmdir()


def _flush(folder: Path) -> None:
    """Puts every file on disk before the folder takes its place, readable as widely as the folder is."""
    mode = folder.stat().st_mode & 0o666  # safetensors makes its files readable by their owner only
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


@contextmanager
def add_files(folder: str | Path, name: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder, whose files are moved into `folder` (made if missing) when the block ends without error.

    Args:
        folder: may hold other files.
        name: one of the files that will be written, by which an earlier result is known.
        overwrite: earlier results may be replaced.

    Raises:
        CheckpointError: the folder cannot be written, or holds an earlier result; before the block.
    """
    path = Path(folder).expanduser().resolve()
    check_addable(folder, name, overwrite=overwrite)
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        path.mkdir(parents=True, exist_ok=True)
        for file in sorted(partial.iterdir()):
            file.replace(path / file.name)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_addable(folder: str | Path, name: str, *, overwrite: bool = False) -> None:
    """Refuses, before any work is done, a folder to which the files of a result could not be added in the end.

    Raises:
        CheckpointError: as for `add_files`.
    """
    path = Path(folder).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{folder}: is a file; give a folder")
    if (path / name).exists() and not overwrite:
        raise CheckpointError(f"{folder}: holds {name} already; choose another folder, or overwrite (--overwrite)")
    parent = next(ancestor for ancestor in (path, *path.parents) if ancestor.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{folder}: cannot be written, {parent} is not a writable folder")
