"""What comes from elsewhere: templates, rendered in a process of their own, which has little time and memory; cards.

Such templates are those of cards that a user gives, and those by which a tokenizer writes chats. The front matter of a
card is YAML, which a few lines can make endless.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import yaml
from markupsafe import Markup

from ..errors import DataError, first_line

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from transformers import PreTrainedTokenizerBase

SCRIPT = Path(__file__).parent / "process.py"
SECONDS = 10  # of a text
MEMORY = 2**30  # bytes beyond what Python and the packages take
LONGEST = {"card": 2**22, "names": 2**22, "chat": 2**26}  # characters of a text
Render = Callable[[Mapping[str, Any]], str]
_LONGEST_CARD = 2**22  # characters
_LONGEST_FRONT = 2**18  # of its front matter: results of evaluations stand there
_DEEPEST = 64


class ForeignTemplateError(Exception):
    """A template cannot be used; `incomplete`: it was well-formed and kept to its bounds, but lacked a value."""

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


@contextmanager
def foreign_template(source: str, kind: str = "card", tokens: Mapping[str, str] | None = None) -> Iterator[Render]:
    """Yields what writes a text of a template, of values as for `sandbox.render` or `apply_chat_template`.

    What is yielded raises ForeignTemplateError: it is no template, reaches for what it is not given, or takes more than
    its time or memory. The process that renders ends with the block.

    Args:
        source: of the template.
        kind: `card`, or `names` for those that one uses; `chat` for one of a tokenizer.
        tokens: of a tokenizer: its special tokens by name.
    """
    first = {"path": sys.path, "kind": kind, "source": source, "tokens": dict(tokens or {})}
    process = subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    try:
        with suppress(OSError):  # whoever reads the answer finds that there is none
            _send(process, first | {"seconds": SECONDS, "memory": MEMORY, "longest": LONGEST[kind]})
        yield partial(_rendered, process)
    finally:
        process.kill()
        with suppress(OSError), process:  # waits for it
            pass


def _rendered(process: subprocess.Popen[str], values: Mapping[str, Any]) -> str:
    request = packed(values)
    try:
        _send(process, request)
        found: dict[str, Any] = json.loads(cast(IO[str], process.stdout).readline())
    except (OSError, json.JSONDecodeError) as error:  # nothing was written
        ended = process.wait() < 0  # by a signal, as its bounds do
        words = f"takes more than {SECONDS} s, or {MEMORY / 2**30:g} GiB of memory"
        raise ForeignTemplateError(words if ended else "the process that renders it failed") from error
    if "text" not in found:
        raise ForeignTemplateError(found["error"], incomplete=found["incomplete"])
    return str(found["text"])


def _send(process: subprocess.Popen[str], request: Any) -> None:
    line, pipe = json.dumps(request), cast(IO[str], process.stdin)
    pipe.write(f"{line}\n")
    pipe.flush()


def render_foreign(source: str, values: Mapping[str, Any]) -> str:
    """Renders the template of a card once; raises as `foreign_template` says."""
    with foreign_template(source) as render:
        return render(values)


def names_of_foreign(source: str) -> list[list[str]]:
    """The names that the template of a card uses (`names_used`); raises as `foreign_template` says."""
    with foreign_template(source, "names") as render:
        found: list[list[str]] = json.loads(render({}))
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


class ChatTemplate(AbstractContextManager["ChatTemplate"]):
    """A context, in which one process writes all chats; it begins with the first.

    Args:
        tokenizer: with a chat template.
        name: of the chats' source, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self._render: Render | None = None
        self._open = ExitStack()

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
            if self._render is None:
                source, tokens = self._tokenizer.get_chat_template(), self._tokenizer.special_tokens_map
                self._render = self._open.enter_context(foreign_template(source, "chat", tokens))
            chat = [dict(one) for one in messages]
            return self._render({"conversation": chat, "add_generation_prompt": answer_follows})
        except (ForeignTemplateError, ValueError, TypeError, RecursionError) as error:
            words = f"the tokenizer's chat template cannot write it ({first_line(error)})"
            raise DataError(f"{self._name}: {words}") from error


def parse_card(text: str, **options: Any) -> ModelCard:
    """Makes a card of the text of a README.md; options as for `ModelCard`.

    Raises:
        ValueError: it is no card, or its front matter is longer or deeper than one, or repeats a part by aliases.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if len(text) > _LONGEST_CARD:
        raise ValueError(f"the card is longer than {_LONGEST_CARD:,} characters")
    if block := REGEX_YAML_BLOCK.search(text):
        _check_front_matter(block[2])
    try:
        return ModelCard(text, **options)
    except (TypeError, AttributeError, LookupError, yaml.YAMLError) as error:  # fields of another kind
        raise ValueError(f"its front matter is none of a card ({type(error).__name__}: {error})") from error


def _check_front_matter(front: str) -> None:
    """Walks over the front matter without making values of it."""
    depth = 0
    if len(front) > _LONGEST_FRONT:
        raise ValueError(f"its front matter is longer than {_LONGEST_FRONT:,} characters")
    try:
        for event in yaml.parse(front, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                raise ValueError("its front matter repeats parts by aliases, or is nested too deep")
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"its front matter is no YAML ({error})") from error
