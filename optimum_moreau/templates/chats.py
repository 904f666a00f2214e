"""Chats as a tokenizer's template writes them, which comes from elsewhere as the tokenizer does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..errors import DataError, first_line
from .foreign import ForeignTemplate, ForeignTemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
