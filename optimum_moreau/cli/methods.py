"""What the verbs `criteria`, `budgets` and `compensations` say of methods: what they do, and their settings."""

from __future__ import annotations

import argparse
from typing import Any

from ..config.settings import Setting, settings_of
from ..errors import ConfigError
from ..registry import Registry


def add_name(parser: argparse.ArgumentParser, registry: Registry) -> None:
    """Adds the name of one method."""
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"list the settings of this {registry.kind}")


def listed(registry: Registry) -> dict[str, Any]:
    """Returns name → summary and source of every method."""
    methods = {name: registry.get(name) for name in registry}
    return {name: {"summary": one.summary, "paper": one.paper} for name, one in methods.items()}


def described(registry: Registry, name: str) -> dict[str, Any]:
    """Returns what a method does, its source, and its settings with default, range, help and what they affect.

    Raises:
        ConfigError: there is none of this name.
    """
    try:
        method = registry.get(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    found = {one.name: _setting(one) for one in settings_of(method)}
    return {"name": name, "summary": method.summary, "paper": method.paper, "settings": found}


def show(result: dict[str, Any]) -> str:
    """The same for a reader, as markdown."""
    if "settings" not in result:
        lines = [["name", "what it does", "source"], ["---"] * 3]
        lines += [[f"`{name}`", _cell(one["summary"]), one["paper"]] for name, one in result.items()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    head = f"**{result['name']}**: {result['summary'] or 'no settings of its own'}"
    source = f" ({result['paper']})" if result["paper"] else ""
    lines = [["setting", "default", "range", "affects", "what it is"], ["---"] * 5]
    for name, one in result["settings"].items():
        default = "by the others" if one["default"] is None else str(one["default"])
        lines.append([f"`{name}`", default, one["range"], one["affects"], _cell(one["help"])])
    return "\n".join([f"{head}{source}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _setting(one: Setting) -> dict[str, Any]:
    words = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = ", ".join(f"{words[rule]} {bound:g}" for rule, bound in one.rules.items() if bound < 10**6)
    return {
        "default": one.default,
        "range": bounds or ", ".join(one.choices) or one.kind_word,
        "affects": one.affects,
        "help": one.help,
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
