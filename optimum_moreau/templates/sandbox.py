"""Renders a template in jinja's sandbox, with the plain values it is given and nothing else; the names that it takes.

Without this package's other modules: the process of `foreign.py` imports it as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import DictLoader, Undefined, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from .markdown import cells, code, plain, sentence

OF_DICTIONARIES = ("items", "keys", "values", "get")
Keys = tuple[str, ...]  # a name and the keys after it


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


def names_used(source: str) -> list[Keys]:
    """Names and the keys that are read from them: `("summary", "dtype")` for `summary.dtype`, and `("summary",)`.

    Without what the template asks for itself, somewhere: with `is defined`, `default` or `in`.

    Raises:
        TemplateError: it is no template.
    """
    tree = Sandbox().parse(source)
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    own |= {macro.name for macro in tree.find_all(nodes.Macro)}  # blocks see both, wherever they are set
    given, asked = meta.find_undeclared_variables(tree) - own, set(_asked(tree))
    used = {_path(node) for node in tree.find_all((nodes.Name, nodes.Getattr, nodes.Getitem))}
    heads = {path: {path[:i] for i in range(1, len(path) + 1)} for path in used if path}
    return sorted(path for path, before in heads.items() if path[0] in given and not before & asked)


def _asked(tree: nodes.Template) -> Iterator[Keys]:
    for node in tree.find_all((nodes.Test, nodes.Filter)):
        if node.name in ("defined", "undefined", "default", "d"):
            yield _path(node.node)
    for comparison in tree.find_all(nodes.Compare):
        for operand in comparison.ops:
            if operand.op in ("in", "notin") and isinstance(comparison.expr, nodes.Const) and _path(operand.expr):
                yield (*_path(operand.expr), str(comparison.expr.value))


def _path(node: nodes.Node | None) -> Keys:
    """Of a name and the keys after it; empty for any other expression."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    key = node.attr if isinstance(node, nodes.Getattr) else None
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        key = node.arg.value
    before = _path(node.node) if isinstance(node, (nodes.Getattr, nodes.Getitem)) else ()
    return (*before, key) if before and key is not None else ()
