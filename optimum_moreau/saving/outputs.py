"""What a run may write: apart from what it reads, and refused before any work where it would fail in the end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..files.temporary import reason
from .contents import is_model, is_of_a_run, strangers

_LONGEST_NAME = 230  # bytes; of 255, what is put around it takes some
_OF_A_DISK = "lost+found"  # at the root of a file system


def check_apart(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Refuses an output that is an input or another output, lies in one, or holds one: writing would destroy it.

    Args:
        outputs: files and folders to be written; `None` is passed over.
        inputs: files and folders to be read; what is not there (a name on the Hub, `None`) is passed over.

    Raises:
        ConfigError: names both.
    """
    others = [(one, path, "read") for one in inputs if (path := _there(one)) is not None]
    for output in outputs:
        if output is None:
            continue
        path = resolved(output)
        for name, other, how in others if not is_device(path) else ():
            if relation := _relation(path, other):
                raise ConfigError(f"{output}: {relation} {name}, which is {how}; give another output")
        others.append((output, path, "written too"))


def _relation(one: Path, two: Path) -> str:
    """How a path stands to another: by name, and by what the names stand for where they exist (mounts, hard links)."""
    if _same(one, two):
        return "is"
    if any(_same(parent, two) for parent in one.parents):
        return "lies in"
    return "holds" if any(_same(parent, one) for parent in two.parents) else ""


def _same(one: Path, two: Path) -> bool:
    with suppress(OSError):
        return one == two or one.samefile(two)
    return False


def is_device(path: Path) -> bool:
    """Whether a path is of something such as /dev/stdout."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _there(name: str | Path | None) -> Path | None:
    """The full path of an input, if there is such a file or folder."""
    with suppress(OSError, RuntimeError, ValueError):  # what is no name at all, or of no user
        return Path(name).expanduser().resolve(strict=True) if name else None
    return None


def resolved(name: str | Path) -> Path:
    """The full path of an output; raises CheckpointError for a link that points at nothing, or too long a name."""
    try:
        path = Path(name).expanduser()
        link = path.readlink() if path.is_symlink() and not path.exists() else None
        found = path.resolve() if link is None else path
    except (OSError, RuntimeError, ValueError) as error:  # a link that points at itself; what is no name at all
        raise CheckpointError(f"{name}: cannot be written ({reason(error)})") from error
    if link is not None:
        raise CheckpointError(f"{name}: is a link to {link}, which is not there; give what is to be written")
    if len(os.fsencode(found.name)) > _LONGEST_NAME:
        raise CheckpointError(f"{found.name[:20]}…: is too long a name; give one of at most {_LONGEST_NAME} bytes")
    return found


def check_target(folder: str | Path, *, overwrite: bool = False) -> Path:
    """Refuses, before any work is done, a target that could not be written in the end; returns its full path.

    Args:
        folder: the folder to be written.
        overwrite: one that is not empty may be replaced, if it holds a model and nothing else.

    Raises:
        CheckpointError: not a folder, not empty, or not writable.
    """
    path = _folder(folder)
    passed_over = [_OF_A_DISK] if is_mount(path) else []
    found = (one.name for one in path.iterdir()) if path.is_dir() else ()
    if any(name not in passed_over and not is_of_a_run(path, name) for name in found):
        if not overwrite:
            raise CheckpointError(f"{folder}: is not empty; choose another folder, or overwrite (--overwrite)")
        if not is_model(path):
            what = "no saved model (config.json with a model type, and weights)"
            raise CheckpointError(f"{folder}: holds {what}; only those are overwritten")
        if odd := [name for name in strangers(path) if name not in passed_over]:
            raise CheckpointError(
                f"{folder}: holds {odd[0]}, which is not part of a model: move it, or choose another folder"
            )
    return path


def check_file(file: str | Path, *, overwrite: bool = False) -> None:
    """Refuses (CheckpointError), before any work is done, a file that could not be written in the end."""
    path = resolved(file)
    if path.is_file() and not overwrite:
        raise CheckpointError(f"{file}: exists; choose another file, or overwrite (--overwrite)")
    if path.is_dir():
        raise CheckpointError(f"{file}: is a folder; give a file")
    _check_writable(file, path.parent)


def check_addable(folder: str | Path, name: str, *, overwrite: bool = False) -> Path:
    """Refuses, before any work is done, a folder to which the files of a result could not be added; returns its path.

    Args:
        folder: may hold other files.
        name: one of the files that will be written, by which an earlier result is known.
        overwrite: earlier results may be replaced.

    Raises:
        CheckpointError: not a folder, not writable, or it holds an earlier result.
    """
    path = check_folder(folder)
    if (path / name).exists() and not overwrite:
        raise CheckpointError(f"{folder}: holds {name} already; choose another folder, or overwrite (--overwrite)")
    return path


def check_folder(folder: str | Path) -> Path:
    """Returns a folder's full path; raises CheckpointError, before any work, where nothing could be written in it."""
    path = _folder(folder)
    if path.is_dir():
        _check_writable(folder, path)
    return path


def _folder(name: str | Path) -> Path:
    """The full path of a folder to be written, in whose place something can be."""
    path = resolved(name)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{name}: is a file; give a folder")
    check_place(name, path)
    return path


def work_folder(output: str | Path, mark: str = "") -> Path:
    """Where the states of a training lie until its output is saved; `mark` tells one training from another."""
    path = resolved(output)
    return place_of(path) / f".{path.name}.recovery{f'-{mark}' if mark else ''}"


def check_place(name: str | Path, path: Path) -> None:
    """Refuses a path beside which, or in which, what belongs to a run cannot lie; `name` is for the message."""
    place = place_of(path)
    _check_writable(name, next(ancestor for ancestor in (place, *place.parents) if ancestor.exists()))


def _check_writable(name: str | Path, folder: Path) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{name}: cannot be written, {folder} is not a writable folder")


def place_of(target: Path) -> Path:
    """Where that lies which belongs to a run and not to its output: beside the target, or in it if it is filled."""
    if not target.is_dir():
        return target.parent
    with suppress(OSError):  # the working folder is gone
        here = Path.cwd()
        if target in (here, *here.parents):
            return target
    return target if is_mount(target) or not os.access(target.parent, os.W_OK | os.X_OK) else target.parent


def is_mount(path: Path) -> bool:
    """Whether a folder is a mount point, also one within a file system (a bind mount)."""
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return False
    escaped = str(path).replace("\\", r"\134").replace(" ", r"\040").replace("\t", r"\011").replace("\n", r"\012")
    return escaped in {line.split(" ")[4] for line in lines}
