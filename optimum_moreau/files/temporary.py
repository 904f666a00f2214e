"""Files and folders of a process that lives: each is locked by the process that made it, and goes with the block.

What has such a name and is locked by nobody was left by a process that was killed; the next one removes it. A lock
(flock) ends with its process, whatever ended that; a number in a name would not tell whose it is now. A folder that is
finished takes another's place in one step, where the system has one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"optimum-moreau-[a-z]+-[0-9a-f]{8}")
_PARTIAL = re.compile(r"\..+\.partial-[0-9a-f]{8}")
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2
_HERE = -100  # AT_FDCWD
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM)


def temporary_folder(purpose: str) -> AbstractContextManager[Path]:
    """Yields an empty folder `optimum-moreau-PURPOSE-…` in the system's place for these, which goes with the block."""
    collect_temporary()
    where = Path(tempfile.gettempdir())
    return _made(where, f"optimum-moreau-{purpose}-", lambda path: path.mkdir(mode=0o700))


def partial_folder(place: Path, name: str) -> AbstractContextManager[Path]:
    """Yields an empty folder `.NAME.partial-…`, in which a result is made; what is left of it goes with the block."""
    return _made(place, f".{name}.partial-", Path.mkdir)


def partial_file(place: Path, name: str) -> AbstractContextManager[Path]:
    """Yields an empty file `.NAME.partial-…`, in which a result is made; what is left of it goes with the block."""
    return _made(place, f".{name}.partial-", lambda path: path.touch(exist_ok=False))


def is_partial(name: str) -> bool:
    """Whether a name is one that `partial_folder` or `partial_file` gives."""
    return bool(_PARTIAL.fullmatch(name))


def collect_partial(place: Path, name: str) -> list[str]:
    """Removes what dead processes left of a result in a place; returns the names."""
    try:
        found = [path for path in place.iterdir() if is_partial(path.name) and path.name.startswith(f".{name}.")]
    except OSError:
        return []
    return [path.name for path in found if _removed(path)]


def collect_temporary() -> None:
    """Removes the temporary folders that this user's dead processes left."""
    where = Path(tempfile.gettempdir())
    with suppress(OSError):
        left = [path for path in where.iterdir() if _FOLDER.fullmatch(path.name) and path.lstat().st_uid == os.getuid()]
        if gone := [path.name for path in left if _removed(path)]:
            logger.info("removed from %s what runs that were killed had left: %s", where, ", ".join(gone))


@contextmanager
def taken_over(path: Path, *, claimed: bool = False) -> Iterator[bool]:
    """Yields whether a file or folder was left by a dead process; then it is locked for the block.

    Where only this process may write (`claimed`), that tells on a file system without locks for folders.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead = path.exists()
        except BlockingIOError:
            dead = False
        except OSError:
            dead = claimed
        yield dead
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or folder, as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def replace_folder(made: Path, target: Path) -> None:
    """Renames a finished folder to its target, which is never absent where the system can exchange two.

    What was there is gone when this returns, and stays where this raises OSError.
    """
    if not target.exists():
        made.rename(target)
        return
    try:
        exchange(made, target)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        swap(made, target)
    remove(made)  # what was there


def exchange(one: Path, two: Path) -> None:
    """Exchanges the names of two folders, in one step; raises OSError: ENOSYS where the system has no such call."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux
    if call is None or call(_HERE, os.fsencode(one), _HERE, os.fsencode(two), ctypes.c_uint(_EXCHANGE)):
        number = errno.ENOSYS if call is None else ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def swap(made: Path, target: Path) -> None:
    """Replaces a folder in two steps; a kill in between leaves `.NAME.replaced-…`, which the next run puts back."""
    replaced = target.with_name(f".{target.name}.replaced-{uuid.uuid4().hex[:8]}")
    target.rename(replaced)
    try:
        made.rename(target)
    except BaseException:
        replaced.rename(target)
        raise
    remove(replaced)


def _removed(path: Path) -> bool:
    with taken_over(path) as dead:
        if dead:
            remove(path)
        return dead


@contextmanager
def _made(place: Path, prefix: str, make: Callable[[Path], None]) -> Iterator[Path]:
    path, descriptor = _locked(place, prefix, make)
    try:
        yield path
    finally:
        remove(path)
        os.close(descriptor)


def _locked(place: Path, prefix: str, make: Callable[[Path], None]) -> tuple[Path, int]:
    """Makes and locks; makes another where a process took it for a dead one's in between."""
    while True:
        make(path := place / f"{prefix}{uuid.uuid4().hex[:8]}")
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # without locks nothing is taken for dead
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
        if path.exists():
            return path, descriptor
        os.close(descriptor)


def reason(error: BaseException) -> str:
    """Why something cannot be written, in words."""
    return getattr(error, "strerror", None) or str(error).strip().split("\n")[0]


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no room: on the disk, in a quota, or below a limit on files."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
