"""Puts a finished folder in its target's place, which is never absent meanwhile where the system can exchange two.

Where a folder cannot be renamed onto (a mount, which every volume of a container is; the working folder, in which the
user's shell would stay behind), it is filled in place, config.json last: `.NAME.complete-…` is what is to go there,
`.NAME.moving-…` the same when what was there is gone. A run that was killed meanwhile is ended by the next.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from ..files.temporary import remove, replace_folder
from .contents import is_part


def publish(made: Path, target: Path) -> None:
    """Renames a finished folder to its target; what was there is gone when this returns.

    Raises:
        OSError: it cannot be renamed; what was there stays.
    """
    if made.parent == target:
        fill(made, target)
        return
    try:
        replace_folder(made, target)
    except OSError as error:
        # a folder of a container's image, which cannot be renamed
        if error.errno not in (errno.EXDEV, errno.EBUSY) or not target.exists():
            raise
        fill(made, target)


def fill(made: Path, target: Path) -> None:
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
