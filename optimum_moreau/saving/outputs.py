"""What a run may write: apart from inputs, claimed for the run's life, refused before any work where it would fail."""

from __future__ import annotations

import fcntl
import glob
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..files.temporary import collect_partial, collect_temporary, reason, remove, taken_over
from .contents import check_replaceable, is_of_a_run
from .publishing import fill, is_mount, place_of

logger = logging.getLogger(__name__)

_LONGEST_NAME = 230  # bytes; of 255, what is put around it takes some
_OF_A_DISK = "lost+found"  # at the root of a file system
_claims: ContextVar[frozenset[Path]] = ContextVar("claims", default=frozenset())  # of this thread's blocks


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
        path = _resolved(output)
        for name, other, how in others if not _is_device(path) else ():
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


def _is_device(path: Path) -> bool:
    """Whether a path is of something such as /dev/stdout."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _there(name: str | Path | None) -> Path | None:
    """The full path of an input, if there is such a file or folder."""
    if not name or not str(name):
        return None
    with suppress(OSError, RuntimeError, ValueError):  # what is no name at all, or of no user
        return Path(name).expanduser().resolve(strict=True)
    return None


def _resolved(name: str | Path) -> Path:
    """The full path of an output.

    Raises:
        CheckpointError: it is a link that points at nothing, or too long a name.
    """
    try:
        path = Path(name).expanduser()
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{name}: is a link to {path.readlink()}, which is not there; give what is to be written"
            )
        found = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link that points at itself; what is no name at all
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{name}: cannot be written ({reason(error)})") from error
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
    if path.is_dir() and any(not _is_passed_over(path, one) for one in path.iterdir()):
        if not overwrite:
            raise CheckpointError(f"{folder}: is not empty; choose another folder, or overwrite (--overwrite)")
        check_replaceable(folder, path, [_OF_A_DISK] if is_mount(path) else [])
    return path


def _is_passed_over(folder: Path, one: Path) -> bool:
    """What is beside the content: a run's own files, and what a file system has at its root."""
    return (one.name == _OF_A_DISK and is_mount(folder)) or is_of_a_run(folder, one.name)


def check_file(file: str | Path, *, overwrite: bool = False) -> None:
    """Refuses, before any work is done, a file that could not be written in the end.

    Raises:
        CheckpointError: it is a folder, exists and may not be replaced, or its folder is missing or not writable.
    """
    path = _resolved(file)
    if path.is_file() and not overwrite:
        raise CheckpointError(f"{file}: exists; choose another file, or overwrite (--overwrite)")
    if path.is_dir():
        raise CheckpointError(f"{file}: is a folder; give a file")
    _check_writable(file, path.parent)


def check_addable(folder: str | Path, name: str, *, overwrite: bool = False) -> Path:
    """Refuses, before any work is done, a folder to which the files of a result could not be added in the end.

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
    """Refuses, before any work is done, a folder in which nothing could be written; returns its full path.

    Raises:
        CheckpointError: a file, or not writable.
    """
    path = _folder(folder)
    if path.is_dir():
        _check_writable(folder, path)
    return path


def _folder(name: str | Path) -> Path:
    """The full path of a folder to be written, in whose place something can be."""
    path = _resolved(name)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{name}: is a file; give a folder")
    _check_place(name, path)
    return path


def work_folder(output: str | Path, mark: str = "") -> Path:
    """Where the states of a training lie until its output is saved: beside that, or in it where it is filled in place.

    Args:
        output: folder to be written.
        mark: what tells one training from another.
    """
    path = _resolved(output)
    return place_of(path) / f".{path.name}.recovery{f'-{mark}' if mark else ''}"


def _check_place(name: str | Path, path: Path) -> None:
    place = place_of(path)
    _check_writable(name, next(ancestor for ancestor in (place, *place.parents) if ancestor.exists()))


def _check_writable(name: str | Path, folder: Path) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{name}: cannot be written, {folder} is not a writable folder")


@contextmanager
def claimed(output: str | Path) -> Iterator[None]:
    """Makes a file or folder to be written this run's for the block: no other run that claims it is let in.

    What a run that was killed left beside it is put right first: what it had finished takes its place, what it had set
    aside comes back, the rest is removed. Within the block, the same thread may claim it again.

    Raises:
        CheckpointError: another run has it, or nothing can be written there.
    """
    path = _resolved(output)
    if path in _claims.get() or _is_device(path):
        yield
        return
    _check_place(output, path)
    place = place_of(path)
    missing = [ancestor for ancestor in (place, *place.parents) if not ancestor.exists()]
    with ExitStack() as held:
        held.callback(_remove_empty, missing)
        try:
            place.mkdir(parents=True, exist_ok=True)
            _hold(path, place, output, held)
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{output}: cannot be written ({reason(error)})") from error
        held.callback(_claims.reset, _claims.set(_claims.get() | {path}))
        _put_right(path, output)
        collect_temporary()
        yield


def _hold(path: Path, place: Path, output: str | Path, held: ExitStack) -> None:
    """Locks an output by all that another run may know it by, whatever it calls it and wherever it runs.

    The file beside it is there before the folder is, and stays when another folder takes that one's place; where a
    folder is filled in place there is one in it too. A lock on the folder itself holds under other names too (mounts).
    """
    for where in dict.fromkeys((path.parent, place)):
        lock = where / f".{path.name}.lock"
        try:
            descriptor = _lock_file(lock, output)
        except OSError as error:
            if where == place or isinstance(error, CheckpointError):
                raise
            logger.debug("%s: cannot be locked (%s)", lock, reason(error))  # of a folder that is filled in place
        else:
            held.callback(os.close, descriptor)
            held.callback(lock.unlink, missing_ok=True)  # before: whoever waits for it looks whether it is still there
    if path.is_dir():
        descriptor = os.open(path, os.O_RDONLY)
        _lock(descriptor, output)
        held.callback(os.close, descriptor)


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # something was written
        for folder in folders:
            folder.rmdir()


def _lock_file(lock: Path, output: str | Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(descriptor, output)
        if _same_file(descriptor, lock):
            try:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            except OSError:  # no room: that is known now, and not after the work
                lock.unlink()
                os.close(descriptor)
                raise
            return descriptor
        os.close(descriptor)  # who had it removed it


def _lock(descriptor: int, output: str | Path) -> None:
    """Locks an open file or folder; closes it where another run has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = b""
        with suppress(OSError):  # a folder
            process = os.read(descriptor, 20)
        os.close(descriptor)
        raise CheckpointError(
            f"{output}: another run writes it (process {process.decode(errors='replace') or 'unknown'}); let that end,"
            " or choose another output"
        ) from None
    except OSError:  # a file system without locks: as if it were claimed
        logger.debug("%s: no locks here", output)


def _same_file(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _put_right(path: Path, output: str | Path) -> None:
    """Of a claimed output: puts right what a run that was killed left; says so by the name that was given."""
    places = dict.fromkeys((place_of(path), path))  # in it too: the run may have been one that fills it in place
    done = [f"removed {name}" for place in places for name in collect_partial(place, path.name)]
    for left in sorted(one for place in places for one in place.glob(f".{glob.escape(path.name)}.*")):
        kind = left.name.removeprefix(f".{path.name}.").partition("-")[0]
        if kind not in ("moving", "complete", "replaced"):
            continue
        with taken_over(left, claimed=True) as dead:
            if not dead:
                continue
            if kind != "replaced":
                fill(left, path)
                done.append(f"put {left.name} in its place")
            elif path.exists():
                remove(left)
                done.append(f"removed {left.name}")
            else:
                left.rename(path)
                done.append(f"put {left.name} back")
    if done:
        logger.warning("%s: %s, which a run that was killed had left", output, ", ".join(done))
