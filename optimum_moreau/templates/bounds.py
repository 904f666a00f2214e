"""A bound on work in this process that may have no end, such as a chat template's."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 10.0
MEMORY = 2**28  # bytes beyond what is resident at the start
_STATM = Path("/proc/self/statm")
_PERIOD = 0.02


class TooMuchError(Exception):
    """The bound was reached; says of what."""


@contextmanager
def bounded(seconds: float | None = None, memory: int | None = None) -> Iterator[None]:
    """Ends a block of Python code that takes too much; one call into C is waited for.

    Args:
        seconds: default `SECONDS`.
        memory: bytes that it may add; watched where the system says how much there is (Linux). Default `MEMORY`.

    Raises:
        TooMuchError: in the block, wherever it is.
    """
    seconds, memory = SECONDS if seconds is None else seconds, MEMORY if memory is None else memory
    over, lock = threading.Event(), threading.Lock()
    reached: list[str] = []
    thread, deadline, most = threading.get_ident(), time.monotonic() + seconds, _resident() + memory

    def watch() -> None:
        while not over.wait(_PERIOD):
            words = f"{seconds:g} s" if time.monotonic() > deadline else ""
            if _resident() > most:
                words = f"{memory / 2**20:g} MiB"
            with lock:
                if words and not over.is_set():
                    reached.append(words)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooMuchError))
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    arrived = False
    try:
        try:
            yield
        except TooMuchError:
            arrived = True
            raise
        finally:
            with lock:
                over.set()
            for _ in range(1000 if reached and not arrived else 0):  # it is on its way, and meant for this block
                time.sleep(0)
    except TooMuchError:
        raise TooMuchError(f"takes more than {reached[0]}") from None


def _resident() -> int:
    if not _STATM.is_file():
        return 0
    return int(_STATM.read_text().split()[1]) * 4096
