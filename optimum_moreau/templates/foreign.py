"""Renders a template that comes from elsewhere in a process of its own, which has little time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

SCRIPT = Path(__file__).parent / "process.py"
SECONDS = 10
MEMORY = 2**30  # bytes, Python's own included
LONGEST = 2**22  # characters of a card


class ForeignTemplateError(Exception):
    """A template cannot be used.

    Attributes:
        incomplete: it was well-formed and kept to its bounds, but lacked a value.
    """

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


def render_foreign(source: str, values: Mapping[str, Any]) -> str:
    """Renders a template; arguments as for `render`.

    Raises:
        ForeignTemplateError: it is none, reaches for what it is not given, or takes more than its time or memory.
    """
    limits = {"seconds": SECONDS, "memory": MEMORY, "longest": LONGEST}
    request = {"path": sys.path, "source": source, "values": packed(dict(values)), **limits}
    try:
        process = subprocess.run(
            [sys.executable, "-P", str(SCRIPT)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=3 * SECONDS,
        )
        found: dict[str, Any] = json.loads(process.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:  # nothing was written: it was ended
        raise ForeignTemplateError(f"takes more than {SECONDS} s, or {MEMORY / 2**30:g} GiB of memory") from error
    if "text" not in found:
        raise ForeignTemplateError(found["error"], incomplete=found["incomplete"])
    return str(found["text"])


def packed(value: Any) -> Any:
    """Values as JSON holds them, collections and Markdown text with their kind, so that data cannot pass for it."""
    if isinstance(value, Markup):
        return ["markdown", str(value)]
    if isinstance(value, Mapping):
        return ["dictionary", [[str(key), packed(one)] for key, one in value.items()]]
    if isinstance(value, (list, tuple, set)):
        return ["list", [packed(one) for one in value]]
    return value


def unpacked(value: Any) -> Any:
    """The inverse."""
    if not isinstance(value, list):
        return value
    kind, held = value
    if kind == "markdown":
        return Markup(held)
    if kind == "dictionary":
        return {key: unpacked(one) for key, one in held}
    return [unpacked(one) for one in held]
