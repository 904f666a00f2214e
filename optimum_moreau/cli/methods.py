"""What the verbs `criteria`, `budgets` and `compensations` say of methods: what they do, and their settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from ..config.settings import Setting, settings_of
from ..registry import Registry

_BAR = "\\|"


def add_name(parser: argparse.ArgumentParser, registry: Registry) -> None:
    """Adds the name of one method."""
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"list the settings of this {registry.kind}")


def verb_of(registry: Registry) -> tuple[Callable[..., None], Callable[..., dict[str, Any]], Callable[..., str]]:
    """Returns `add_arguments`, `run` and `show` of a verb that lists the methods of a kind, or the settings of one."""

    def run(args: argparse.Namespace) -> dict[str, Any]:
        if args.name:
            return described(registry, args.name)
        methods = {name: registry.get(name) for name in registry}
        return {name: {"summary": one.summary, "paper": one.paper} for name, one in methods.items()}

    return partial(add_name, registry=registry), run, show


def described(registry: Registry, name: str) -> dict[str, Any]:
    """Returns what a method does, its source, and its settings with default, range, help and what they affect.

    Raises:
        ConfigError: there is none of this name.
    """
    method = registry.get(name)
    found = {one.name: _setting(one) for one in settings_of(method)}
    return {"name": name, "summary": method.summary, "paper": method.paper, "settings": found}


def show(result: dict[str, Any]) -> str:
    """The same for a reader, as markdown."""
    if "settings" not in result:
        lines = [["name", "what it does", "source"], ["---"] * 3]
        lines += [[f"`{name}`", one["summary"], one["paper"]] for name, one in result.items()]
        return table(lines)
    head = f"**{result['name']}**: {result['summary'] or 'no settings of its own'}"
    source = f" ({result['paper']})" if result["paper"] else ""
    lines = [["setting", "default", "range", "affects", "what it is"], ["---"] * 5]
    for name, one in result["settings"].items():
        default = "by the others" if one["default"] is None else str(one["default"])
        lines.append([f"`{name}`", default, one["range"], one["affects"], one["help"]])
    return f"{head}{source}\n\n{table(lines)}"


def table(lines: list[list[str]]) -> str:
    """Cells as a markdown table."""
    return "\n".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |" for line in lines)


def _setting(one: Setting) -> dict[str, Any]:
    words = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = ", ".join(f"{words[rule]} {bound:g}" for rule, bound in one.rules.items() if bound < 10**6)
    return {
        "default": one.default,
        "range": bounds or ", ".join(one.choices) or one.kind_word,
        "affects": one.affects,
        "help": one.help,
    }
