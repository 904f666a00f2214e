"""Templates (jinja2) from elsewhere: sandboxed, bounded, and what they write of data is inert Markdown."""

from .foreign import ChatTemplate, names_of_foreign, parse_card, render_foreign
from .sandbox import LITERAL, code, plain, render

__all__ = ["LITERAL", "ChatTemplate", "code", "names_of_foreign", "parse_card", "plain", "render", "render_foreign"]
