"""Flags of the config, read off the fields of the config and of its methods.

Everyday fields have a flag each. A method's settings are given together, as `--criterion-args sigma=0.2,steps=5`; each
has a flag of its own too, which only `--help-all` lists.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from ..config import BEST, PRESETS, Mask, MoreauPrunerConfig
from ..config.flat import known_names
from ..config.methods import groups
from ..config.settings import Setting, parsed, settings_of
from ..errors import ConfigError
from ..registry import METHODS
from .help import add_help_all, rarely

_PLURAL = {"criterion": "criteria", "budget": "budgets", "compensation": "compensations"}


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the preset and the flags of `MoreauPrunerConfig`."""
    group = parser.add_argument_group("what and how to prune")
    words = ", ".join(f"{field} {value}" for field, value in BEST.items())
    group.add_argument(
        "--preset",
        metavar="NAME",
        help=f"settings under the flags, and a recipe: {' | '.join(PRESETS)} (best: {words})",
    )
    _add(group, settings_of(MoreauPrunerConfig))
    add_help_all(parser)


def add_compared_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that decide scores and counts of units, of a comparison that varies the rest itself."""
    group = parser.add_argument_group("what and how to prune")
    taken = {action.dest for action in parser._actions}
    own = (one for one in settings_of(MoreauPrunerConfig) if one.compared and one.name not in taken)
    _add(group, own, skip=("mask", "compensation"))
    add_help_all(parser)


def settings_from(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, flat, as `MoreauPrunerConfig.from_dict` takes them.

    Raises:
        ConfigError: a method or a setting of one is unknown, or a value cannot be that.
    """
    given = {name: value for name, value in vars(args).items() if name in _dests() and value is not None}
    found = {name.removeprefix("of_"): value for name, value in given.items() if not name.endswith("_args")}
    for field in (*METHODS, "mask"):
        if text := given.get(f"{field}_args"):
            found |= _together(field, found.get(field), text, args)
    return found


def config_from(args: argparse.Namespace) -> MoreauPrunerConfig:
    """Makes the config of the flags that were given, over the preset.

    Raises:
        ConfigError: a value is out of its range or contradicts another.
    """
    return MoreauPrunerConfig.preset(args.preset or "best", **settings_from(args))


def _add(group: Any, fields: Iterable[Setting], skip: Iterable[str] = ()) -> None:
    """A flag for each field; of a field that names a method, also one for its settings."""
    taken: set[str] = set()
    for one in fields:
        add_flag(group, one, one.name, rarely(one.help) if one.rare else one.help)
        taken |= {one.name, one.was}
        if one.name in METHODS:
            known = list(METHODS[one.name])
            names = ", ".join(known) if len(known) < 10 else f"{known[0]}, taylor, wanda, …"
            group._group_actions[-1].help = f"{one.help}: {names} (optimum-moreau {_PLURAL[one.name]})"
            group.add_argument(
                f"--{one.name}-args",
                metavar="K=V,…",
                help=f"its settings, as steps=5,… (optimum-moreau {_PLURAL[one.name]} NAME lists them)",
            )
        elif one.name == "mask":
            names = ", ".join(each.name for each in settings_of(Mask) if each.name != "pattern")
            group.add_argument("--mask-args", metavar="K=V,…", help=f"its settings: {names}")
    for one in (each for field, method in groups() if field not in skip for each in settings_of(method)):
        if one.was not in taken:
            taken.add(one.was)
            add_flag(group, one, f"of_{one.was}", rarely(one.help))


def add_flag(group: Any, one: Setting, dest: str, text: str, prefix: str = "") -> None:
    """Adds the flag of a field, named as its destination; its short name, if it has one, takes the prefix."""
    names = [f"{prefix}{one.flag}", dest.removeprefix("of_")] if one.flag else [dest.removeprefix("of_")]
    flags = [f"--{name}".replace("_", "-") for name in names]
    if one.flag:  # its long name too, which takes no room in the list
        group.add_argument(flags.pop(), dest=dest, type=_reader(one), help=argparse.SUPPRESS)
    if one.was != one.name and not dest.startswith("of_"):
        group.add_argument(f"--{one.was}", dest=dest, type=_reader(one), help=argparse.SUPPRESS)
    text = text.replace("%", "%%")
    if one.switch:
        group.add_argument(*flags, dest=dest, action="store_true", default=None, help=text)
        return
    choices = f": {' | '.join(one.choices)}" if one.choices and text != argparse.SUPPRESS else ""
    group.add_argument(*flags, dest=dest, type=_reader(one), metavar=one.metavar or one.kind_word, help=text + choices)


def _reader(one: Setting) -> Any:
    """Reads the text of a flag; a value that cannot be is said in the flag's name."""

    def read(text: str) -> Any:
        try:
            return one.read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _together(field: str, value: Any, text: str, args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a method, or of the mask, given as `k=v,k=v`; flat."""
    kind: Any = Mask
    if field != "mask":
        best = BEST.get(field) if getattr(args, "preset", None) in (None, "best") else None
        name = value or best or {one.name: one.default for one in settings_of(MoreauPrunerConfig)}[field]
        kind = METHODS[field].get(name)
    found = {}
    for part in text.split(","):
        name, equals, one = (each.strip() for each in part.partition("="))
        if not equals:
            raise ConfigError(f"--{field}-args: '{part}' is not NAME=VALUE")
        value = parsed(kind, name, one)
        found[{each.name: each.was for each in settings_of(kind)}[name]] = value
    return found


def _dests() -> set[str]:
    own = {one.name for one in settings_of(MoreauPrunerConfig)} | {f"{field}_args" for field in (*METHODS, "mask")}
    return own | {f"of_{name}" for name in known_names()}
