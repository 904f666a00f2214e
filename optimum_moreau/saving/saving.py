"""Writes a folder all or nothing: beside its target first, then put in its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError, MoreauError
from ..files.temporary import partial_folder, reason
from .outputs import check_addable, check_target, claimed
from .publishing import place_of, publish

_MADE_IN = re.compile(r"(?:^|(?<=['\"( ]))/[^'\"]*?/\.[^/]+\.partial-[0-9a-f]{8}/")  # the folder in which it is made


@contextmanager
def save_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside the target, which takes the target's place when the block ends without error.

    Raises:
        CheckpointError: the target may not or cannot be written, or another run writes it; nothing is left behind, an
            old folder stays as it was.
    """
    with claimed(folder):
        target = check_target(folder, overwrite=overwrite)
        with _explained(folder), partial_folder(place_of(target), target.name) as partial:
            yield partial
            _flush(partial)
            check_target(folder, overwrite=overwrite)  # something may have come to lie there meanwhile
            publish(partial, target)


@contextmanager
def _explained(folder: str | Path) -> Iterator[None]:
    """Names the folder that was to be written, and not the one in which it was made."""
    try:
        yield
    except MoreauError as error:
        what = _MADE_IN.sub("", str(error).removeprefix(f"{folder}: "))
        raise CheckpointError(f"{folder}: {what}; nothing was saved") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({reason(error)}); nothing was saved") from error


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
        name: one of the files that will be written, by which an earlier result is known; it is moved last.
        overwrite: earlier results may be replaced.

    Raises:
        CheckpointError: the folder cannot be written, or holds an earlier result; before the block.
    """
    with claimed(folder):
        path = check_addable(folder, name, overwrite=overwrite)
        with _explained(folder), partial_folder(place_of(path), path.name) as partial:
            yield partial
            path.mkdir(parents=True, exist_ok=True)
            for file in sorted(partial.iterdir(), key=lambda one: (one.name == name, one.name)):
                file.replace(path / file.name)
