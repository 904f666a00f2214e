"""What a command writes: apart from what it reads, and claimed from the start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import processes


@contextmanager
def reserved(outputs: Sequence[str | Path | None], inputs: Iterable[str | Path | None]) -> Iterator[None]:
    """Refuses outputs that coincide with inputs, and claims them for the block; of several processes the first does.

    Args:
        outputs: files and folders to be written; `None` is passed over.
        inputs: files and folders that are read.

    Raises:
        ConfigError: an output is, holds or lies in an input, or another output.
        CheckpointError: another run writes one of them, or nothing can be written there.
    """
    from ..saving import check_apart

    check_apart(outputs, inputs)
    with claims(outputs):
        yield


@contextmanager
def claims(outputs: Sequence[str | Path | None]) -> Iterator[None]:
    """The second half of `reserved`."""
    from ..saving import claimed

    with ExitStack() as stack:
        if processes.is_first():
            for output in outputs:
                if output is not None:
                    stack.enter_context(claimed(output))
        yield
