"""Flags of the steps after pruning, recovery and publishing, read off the fields of their classes."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from ..config.settings import Setting, settings_of
from ..errors import ConfigError
from ..registry import suggestion
from .help import rarely
from .settings import add_flag


def add_step(group: Any, *kinds: type, prefix: str = "", shown: Collection[str] | None = None) -> None:
    """Adds a flag for each field of some classes that the parser does not have yet; what is not given is `None`.

    Args:
        group: of the parser.
        kinds: settings classes.
        prefix: of the flags.
        shown: those that `--help` lists; the others are given together as well, by `--PREFIX-args`.
    """
    if shown is not None:
        name = prefix.rstrip("_")
        text = f"its settings (optimum-moreau {name} --help lists them)"
        group.add_argument(f"--{name}-args", metavar="K=V,…", help=text)
    taken = {action.dest for action in group._actions}
    for one in _fields(*kinds):
        if (dest := f"{prefix}{one.name}") not in taken:
            text = one.help
            if isinstance(one.default, (int, float, str)) and not one.switch:
                text += f" (default {one.default:{'g' if isinstance(one.default, float) else ''}})"
            add_flag(group, one, dest, text if shown is None or one.name in shown else rarely(text), prefix)


def given(args: argparse.Namespace, *kinds: type, prefix: str = "") -> dict[str, Any]:
    """The fields of some classes whose flags were given, each by its own or in `--recover-args epochs=2,lr=1e-4`.

    Raises:
        ConfigError: there is no such field, or its value cannot be that.
    """
    fields = {one.name: one for one in _fields(*kinds)}
    own = {name: value for name in fields if (value := getattr(args, f"{prefix}{name}", None)) is not None}
    return _together(fields, f"--{prefix}args".replace("_", "-"), getattr(args, f"{prefix}args", None) or "") | own


def _fields(*kinds: type) -> list[Setting]:
    """All but those that hold another class's."""
    return [one for kind in kinds for one in settings_of(kind) if not hasattr(one.kind, "__pydantic_fields__")]


def _together(fields: dict[str, Setting], flag: str, text: str) -> dict[str, Any]:
    short, found = {one.flag: name for name, one in fields.items()}, {}
    for part in text.split(",") if text else ():
        name, _, value = (one.strip() for one in part.partition("="))
        field = short.get(name, name.replace("-", "_"))
        if field not in fields:
            known = f"{suggestion(field, fields)} Known: {', '.join(fields)}"
            raise ConfigError(f"{flag}: unknown setting '{name}'.{known}")
        try:
            found[field] = fields[field].read(value or ("yes" if fields[field].switch else ""))
        except ConfigError as error:
            raise ConfigError(f"{flag}: {name}: {error}") from None
    return found
