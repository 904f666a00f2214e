"""Text from data in Markdown: it stays text, whatever it holds.

Nothing of it becomes a heading, a link, an image, HTML, mathematics, a fence, or the end of a table's cell or of a
line. What is harmless is not changed: `org/model`, `2:4`, `moreau_llama`, `my text.txt`.
"""

from __future__ import annotations

import re
from typing import Any

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
