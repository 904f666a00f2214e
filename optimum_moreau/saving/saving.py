"""Writes a folder all or nothing: claimed for the run's life, made beside its target, then put in its place.

The target is never absent meanwhile where the system can exchange two. Where a folder cannot be renamed onto (a mount,
which every volume of a container is; the working folder, in which the user's shell would stay behind), it is filled in
place, config.json last: `.NAME.complete-…` is what is to go there, `.NAME.moving-…` the same when what was there is
gone. A run that was killed meanwhile is ended by the next.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError, MoreauError
from ..files import temporary
from ..files.temporary import partial_folder, reason, remove
from .contents import is_part
from .outputs import check_addable, check_place, check_target, is_device, place_of, resolved

logger = logging.getLogger(__name__)

_MADE_IN = re.compile(r"(?:^|(?<=['\"( ]))/[^'\"]*?/\.[^/]+\.partial-[0-9a-f]{8}/")  # the folder in which it is made
_claims: ContextVar[frozenset[Path]] = ContextVar("claims", default=frozenset())  # of this thread's blocks


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
            _publish(partial, target)


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

    The file that `name` says is moved last; arguments and errors, before the block, as for `check_addable`.
    """
    with claimed(folder):
        path = check_addable(folder, name, overwrite=overwrite)
        with _explained(folder), partial_folder(place_of(path), path.name) as partial:
            yield partial
            path.mkdir(parents=True, exist_ok=True)
            for file in sorted(partial.iterdir(), key=lambda one: (one.name == name, one.name)):
                file.replace(path / file.name)


def _publish(made: Path, target: Path) -> None:
    """Renames a finished folder to its target; what was there is gone when this returns, or stays if it raises."""
    if made.parent != target:
        try:
            temporary.replace_folder(made, target)
            return
        except OSError as error:
            # a folder of a container's image, which cannot be renamed
            if error.errno not in (errno.EXDEV, errno.EBUSY) or not target.exists():
                raise
    _fill(made, target)


def _fill(made: Path, target: Path) -> None:
    """Moves what a finished folder holds into its target, whose model goes first; goes on where it was interrupted."""
    kind = made.name.removeprefix(f".{target.name}.").partition("-")[0]
    if kind == "partial":
        made = made.rename(_named(made, target, "complete"))
        kind = "complete"
    if kind == "complete":
        with suppress(FileNotFoundError):
            (target / "config.json").unlink()  # no model any more, while that is half there
        for path in target.iterdir():
            if path != made and is_part(path):
                remove(path)
        made = made.rename(_named(made, target, "moving"))
    for path in sorted(made.iterdir(), key=lambda one: one.name == "config.json"):
        path.rename(target / path.name)
    made.rmdir()


def _named(made: Path, target: Path, kind: str) -> Path:
    return made.with_name(f".{target.name}.{kind}-{made.name.rpartition('-')[2]}")


@contextmanager
def claimed(output: str | Path) -> Iterator[None]:
    """Makes a file or folder to be written this run's for the block: no other run that claims it is let in.

    What a run that was killed left beside it is put right first: what it had finished takes its place, what it had set
    aside comes back, the rest is removed. Within the block, the same thread may claim it again.

    Raises:
        CheckpointError: another run has it, or nothing can be written there.
    """
    path = resolved(output)
    if path in _claims.get() or is_device(path):
        yield
        return
    check_place(output, path)
    place = place_of(path)
    missing = [ancestor for ancestor in (place, *place.parents) if not ancestor.exists()]
    with ExitStack() as held:
        held.callback(_remove_empty, missing)
        try:
            place.mkdir(parents=True, exist_ok=True)
            _hold(path, place, output, held)
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{output}: cannot be written ({reason(error)})") from error
        held.callback(_claims.reset, _claims.set(_claims.get() | {path}))
        _put_right(path, output)
        temporary.collect_temporary()
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
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                break
        os.close(descriptor)  # who had it removed it
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    except OSError:  # no room: that is known now, and not after the work
        lock.unlink()
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, output: str | Path) -> None:
    """Locks an open file or folder; closes it where another run has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = b""
        with suppress(OSError):  # a folder
            process = os.read(descriptor, 20)
        os.close(descriptor)
        who = f"process {process.decode(errors='replace') or 'unknown'}"
        message = f"{output}: another run writes it ({who}); let that end, or choose another output"
        raise CheckpointError(message) from None
    except OSError:  # a file system without locks: as if it were claimed
        logger.debug("%s: no locks here", output)


def _put_right(path: Path, output: str | Path) -> None:
    """Of a claimed output: puts right what a run that was killed left; says so by the name that was given."""
    places = dict.fromkeys((place_of(path), path))  # in it too: the run may have been one that fills it in place
    done = [f"removed {name}" for place in places for name in temporary.collect_partial(place, path.name)]
    for left in sorted(one for place in places for one in place.glob(f".{glob.escape(path.name)}.*")):
        kind = left.name.removeprefix(f".{path.name}.").partition("-")[0]
        if kind not in ("moving", "complete", "replaced"):
            continue
        with temporary.taken_over(left, claimed=True) as dead:
            if not dead:
                continue
            if kind != "replaced":
                _fill(left, path)
                done.append(f"put {left.name} in its place")
            elif path.exists():
                remove(left)
                done.append(f"removed {left.name}")
            else:
                left.rename(path)
                done.append(f"put {left.name} back")
    if done:
        logger.warning("%s: %s, which a run that was killed had left", output, ", ".join(done))
