"""Memory of this process, resident or on its GPU, and what to say where it does not suffice."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutOfMemoryError


def peak_memory_bytes() -> int:
    """Returns the peak of memory allocated on the GPU where one is used, else of resident memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resident_bytes(peak=True)


def resident_bytes(*, peak: bool = False) -> int:
    """Returns this process's resident memory, or its peak since the start (on Linux, since `reset_peak_memory`)."""
    status = Path("/proc/self/status")
    if status.is_file():
        field = "VmHWM:" if peak else "VmRSS:"
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def reset_peak_memory() -> None:
    """Lets the peak of resident memory start anew from what is resident now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def out_of_memory(words: Callable[[], str]) -> Iterator[None]:
    """Raises OutOfMemoryError with these words where memory does not suffice: torch has words alone on a CPU."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise OutOfMemoryError(words()) from error
        raise
