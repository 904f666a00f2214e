"""Renders a template in jinja's sandbox, with the plain values it is given and nothing else.

Without this package's other modules: the process of `foreign.py` imports it as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from jinja2 import DictLoader, Undefined
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from .markdown import cells, code, plain, sentence

OF_DICTIONARIES = ("items", "keys", "values", "get")


class Sandbox(ImmutableSandboxedEnvironment):
    """Of values, their keys, a dictionary's views and text's methods; whatever is printed of them is plain text."""

    def __init__(self) -> None:
        super().__init__(finalize=_printed, keep_trailing_newline=True, loader=DictLoader({}))
        self.filters |= {"code": code, "sentence": sentence, "cells": cells}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A key of a dictionary comes before its methods."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Nothing private, and no methods but those of text and of dictionaries that change nothing."""
        if isinstance(obj, Mapping) and attr not in OF_DICTIONARIES:
            return False
        return not attr.startswith("_") and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Says so at once, and not where it is used."""
        raise SecurityError(f"'{attribute}' of {type(obj).__name__} is none of the values of a card")


def _printed(value: Any) -> Any:
    """What stands in the place of `{{ value }}`."""
    return value if isinstance(value, (Markup, Undefined, int, float)) else plain("" if value is None else value)


def render(source: str, values: Mapping[str, Any]) -> str:
    """Renders a template.

    Args:
        source: of the template.
        values: name → text, number, list or dictionary of these; text that is `Markup` is Markdown already.

    Raises:
        TemplateError: it is none, or reaches for what it is not given.
    """
    return Sandbox().from_string(source).render(**values)
