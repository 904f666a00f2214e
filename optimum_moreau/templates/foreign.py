"""Renders a template that comes from elsewhere in a process of its own, which has little time and memory.

Such are the templates of cards that a user gives, and those by which a tokenizer writes chats.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from markupsafe import Markup

from ..errors import DataError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCRIPT = Path(__file__).parent / "process.py"
SECONDS = 10  # of a text
MEMORY = 2**30  # bytes beyond what Python and the packages take
LONGEST = {"card": 2**22, "names": 2**22, "chat": 2**26}  # characters of a text


class ForeignTemplateError(Exception):
    """A template cannot be used.

    Attributes:
        incomplete: it was well-formed and kept to its bounds, but lacked a value.
    """

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


class ForeignTemplate:
    """A template, and the process that renders it; a context, which ends that process.

    Args:
        source: of the template.
        kind: `card`, or `names` for those that one uses; `chat` for one of a tokenizer.
        tokens: of a tokenizer: its special tokens by name.
    """

    def __init__(self, source: str, kind: str = "card", tokens: Mapping[str, str] | None = None) -> None:
        bounds = {"seconds": SECONDS, "memory": MEMORY, "longest": LONGEST[kind]}
        self._first = {"path": sys.path, "kind": kind, "source": source, "tokens": dict(tokens or {}), **bounds}

    def __enter__(self) -> ForeignTemplate:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        with suppress(OSError):  # whoever reads the answer finds that there is none
            self._send(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with suppress(OSError), self._process:  # waits for it
            pass

    def render(self, values: Mapping[str, Any]) -> str:
        """Writes a text; values as for `sandbox.render`, or the arguments of `apply_chat_template`.

        Raises:
            ForeignTemplateError: it is none, reaches for what it is not given, or takes more than its time or memory.
        """
        request = packed(values)
        try:
            self._send(request)
            found: dict[str, Any] = json.loads(cast(IO[str], self._process.stdout).readline())
        except (OSError, json.JSONDecodeError) as error:  # nothing was written
            ended = self._process.wait() < 0  # by a signal, as its bounds do
            words = f"takes more than {SECONDS} s, or {MEMORY / 2**30:g} GiB of memory"
            raise ForeignTemplateError(words if ended else "the process that renders it failed") from error
        if "text" not in found:
            raise ForeignTemplateError(found["error"], incomplete=found["incomplete"])
        return str(found["text"])

    def _send(self, request: Any) -> None:
        line = json.dumps(request)
        pipe = cast(IO[str], self._process.stdin)
        pipe.write(f"{line}\n")
        pipe.flush()


def render_foreign(source: str, values: Mapping[str, Any]) -> str:
    """Renders the template of a card once; raises as `ForeignTemplate.render`."""
    with ForeignTemplate(source) as template:
        return template.render(values)


def names_of_foreign(source: str) -> list[list[str]]:
    """The names that the template of a card uses (`names_used`); raises as `ForeignTemplate.render`."""
    with ForeignTemplate(source, "names") as template:
        found: list[list[str]] = json.loads(template.render({}))
    return found


def packed(value: Any) -> Any:
    """Values as JSON holds them, with the kind of a collection and of Markdown, so that data cannot pass for it.

    What is no plain value is named by its type, as transformers does for chats.
    """
    if isinstance(value, Markup):
        return ["markdown", str(value)]
    if isinstance(value, Mapping):
        return ["dictionary", [[packed(key), packed(one)] for key, one in value.items()]]
    if isinstance(value, (list, tuple, set)):
        return ["tuple" if isinstance(value, tuple) else "list", [packed(one) for one in value]]
    return value if value is None or isinstance(value, (str, int, float)) else f"<{type(value).__name__}>"


def unpacked(value: Any) -> Any:
    """The inverse."""
    if not isinstance(value, list):
        return value
    kind, held = value
    if kind == "markdown":
        return Markup(held)
    if kind == "dictionary":
        return {unpacked(key): unpacked(one) for key, one in held}
    return (tuple if kind == "tuple" else list)(unpacked(one) for one in held)


class ChatTemplate:
    """A context, in which one process writes all chats; it begins with the first.

    Args:
        tokenizer: with a chat template.
        name: of the chats' source, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self._template: ForeignTemplate | None = None
        self._open = ExitStack()

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def text(self, messages: Iterable[Mapping[str, Any]], *, answer_follows: bool = False) -> str:
        """Writes a chat as `tokenizer.apply_chat_template` does.

        Args:
            messages: dictionaries with `role` and `content`.
            answer_follows: end where the assistant's answer begins.

        Raises:
            DataError: no template, messages that it cannot write, or a template without an end.
        """
        if self._tokenizer is None or not self._tokenizer.chat_template:
            raise DataError(
                f"{self._name}: holds chat messages, and the tokenizer has no chat template; give plain text"
            )
        try:
            if self._template is None:
                source, tokens = self._tokenizer.get_chat_template(), self._tokenizer.special_tokens_map
                self._template = self._open.enter_context(ForeignTemplate(source, "chat", tokens))
            chat = [dict(one) for one in messages]
            return self._template.render({"conversation": chat, "add_generation_prompt": answer_follows})
        except (ForeignTemplateError, ValueError, TypeError, RecursionError) as error:
            words = f"the tokenizer's chat template cannot write it ({first_line(error)})"
            raise DataError(f"{self._name}: {words}") from error
