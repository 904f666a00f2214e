"""Renders a template in jinja's sandbox, with the plain values it is given and nothing else; the names that it takes.

Text from data stays text in Markdown, whatever it holds: nothing of it becomes a heading, a link, an image, HTML,
mathematics, a fence, or the end of a table's cell or of a line. What is harmless is not changed: `org/model`, `2:4`,
`moreau_llama`, `my text.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import DictLoader, Undefined, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

LITERAL = Markup  # text that is Markdown already, because this package wrote it

# Renderers make links of these wherever they stand, escaped or not, but in code.
_LINKED = re.compile(r"(?i)(?:https?|ftp|mailto|xmpp):|www\.|\S@\S")
_SPECIAL = re.compile(r"[\\*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "&#96;"}
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
# At the beginning of a line: a heading, a list, the underline of a heading, a number of a list.
_FIRST = re.compile(r"^(\s*)([#=]|[-+](?=[\s\-+=]|$))")
_NUMBERED = re.compile(r"^(\s*\d+)([.)])(?=\s|$)")
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

    Without what the template asks for itself, somewhere: with `is defined`, `default` or `in`. Raises as `render`.
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


def one_line(value: Any) -> str:
    """The text of a value on one line, without characters that turn or end a line."""
    text = str(value)
    return " ".join(_BREAKS.split(text)).strip() if _BREAKS.search(text) else text


def plain(value: Any) -> Markup:
    """Data as text within Markdown; what was marked as Markdown stays as it is."""
    if isinstance(value, Markup):
        return value
    text = one_line(value)
    if _LINKED.search(text):
        return code(text)
    text = re.sub(r"[&<>`]", lambda found: _ENTITIES[found[0]], _SPECIAL.sub(r"\\\g<0>", text))
    return Markup(_NUMBERED.sub(r"\1\\\2", _FIRST.sub(r"\1\\\2", text)))


def code(value: Any) -> Markup:
    """Data as a code span, also within a table: longer backticks around those that it holds."""
    text = one_line(value).strip() or " "
    marks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text[0] == "`" or text[-1] == "`" else ""
    text = text.replace("|", r"\|")
    return Markup(f"{marks}{pad}{text}{pad}{marks}")


def sentence(value: Any) -> Markup:
    """Data as text that begins with a capital letter."""
    text = one_line(value)
    return value[:1].upper() + value[1:] if isinstance(value, Markup) else plain(text[:1].upper() + text[1:])


def cells(values: Any) -> Markup:
    """Data as the cells of a table's row, without the outer bars."""
    return Markup(" | ").join(plain(value) for value in values)
