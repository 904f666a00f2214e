"""How far a long step is: a bar on a terminal, and a line a minute elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

from ..distributed import rank

logger = logging.getLogger(__name__)
EVERY = 60.0  # seconds between two lines
T = TypeVar("T")


def progress(
    steps: Iterable[T], what: str, total: int | None = None, note: Callable[[], str] | None = None
) -> Iterator[T]:
    """Yields what `steps` yields, and shows how far it is; of several processes only the first does.

    On a terminal that is a bar; elsewhere a line of the log (at INFO) once a minute, so that a step that is done sooner
    says nothing.

    Args:
        steps: what is gone through.
        what: the step's name: "refit", "perplexity".
        total: how many there are, where `steps` has no length.
        note: what is to be said beside it, after the first step: a loss.
    """
    if rank():
        yield from steps
        return
    total = len(steps) if total is None and isinstance(steps, Sized) else total
    said = time.monotonic()
    with tqdm(steps, what, total, leave=False, disable=None) as bar:
        for done, step in enumerate(bar):
            beside = note() if note and done else ""
            bar.set_postfix_str(beside, refresh=False)
            if bar.disable and time.monotonic() - said > EVERY:
                said = time.monotonic()
                logger.info("%s: %d of %s done%s", what, done, total or "?", f", {beside}" if beside else "")
            yield step
