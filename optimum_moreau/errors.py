"""The mistakes this package tells its user about: one line that says where, what, and what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 300  # characters of a message: a damaged value may be in it


class MoreauError(Exception):
    """A mistake of the request or of its input; the command line prints it as one line and exits with 2."""


class ConfigError(MoreauError, ValueError):
    """A setting is unknown, out of its range, or contradicts another."""


class DataError(MoreauError, ValueError):
    """A text, its fields or its token ids cannot serve."""


class UnsupportedModelError(MoreauError, ValueError):
    """The model is of a type, or in a state, that cannot be pruned."""


class NonFiniteError(MoreauError, ArithmeticError):
    """A loss or a gradient is NaN or infinite."""


class OutOfMemoryError(MoreauError, MemoryError):
    """Scoring needs more memory than there is."""


class PlanError(MoreauError, ValueError):
    """A plan is damaged, unreachable, or made for another model."""


class ExportError(MoreauError, ValueError):
    """The pruned shapes do not fit the export that was asked for."""


class CheckpointError(MoreauError, OSError):
    """A folder cannot be read or written, or what was written does not load back as it was."""


class HubError(MoreauError, OSError):
    """The Hub refused something, or cannot be reached."""


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Silences a library's log for a while, where what it has to say becomes one line of ours."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or of its cause's where that line only announces it; not without end."""
    line = str(error).strip().split("\n")[0]
    if line.endswith(":") and error.__cause__:
        return first_line(error.__cause__)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
