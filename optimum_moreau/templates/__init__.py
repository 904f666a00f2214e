"""Templates (jinja2) from elsewhere: sandboxed, bounded, and what they write of data is inert Markdown."""

from .cards import parse_card
from .foreign import ChatTemplate, names_of_foreign, render_foreign
from .markdown import LITERAL, code, plain
from .sandbox import render

__all__ = ["LITERAL", "ChatTemplate", "code", "names_of_foreign", "parse_card", "plain", "render", "render_foreign"]
