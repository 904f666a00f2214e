"""Flags read off the fields of classes: of the config and its methods, and of the steps after pruning.

Everyday fields have a flag each. The settings of a method or a step are given together, as `--criterion-args
sigma=0.2,steps=5`; each has a flag of its own too, which only `--help-all` lists.
"""

import argparse
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ..config import MEASURED, PRESETS, Mask, MoreauPrunerConfig
from ..config.flat import known_names, name_of
from ..config.methods import groups
from ..config.settings import Setting, parsed, settings_of
from ..errors import ConfigError
from ..registry import METHODS, suggestion
from .options import HELP_ALL, add, rarely

_PLURAL = {"criterion": "criteria", "budget": "budgets", "compensation": "compensations"}
_TOGETHER = (*METHODS, "mask")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the preset and the flags of `MoreauPrunerConfig`."""
    group = parser.add_argument_group("what and how to prune")
    add(group, "--preset NAME", f"settings under the flags, and a recipe: {' | '.join(PRESETS)} (best)")
    _add_fields(group, settings_of(MoreauPrunerConfig))
    parser.add_argument(HELP_ALL, action="help", help="list every flag, those of methods' settings too")


def add_compared_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the calibration text and the flags that decide scores and counts of units: a comparison varies the rest."""
    add(parser.add_argument_group("calibration"), "--calibration TEXT", "text file, records (.jsonl …), or hub:id[…]")
    group = parser.add_argument_group("what and how to prune")
    taken = {action.dest for action in parser._actions}
    own = (one for one in settings_of(MoreauPrunerConfig) if one.compared and one.name not in taken)
    _add_fields(group, own, skip=("mask", "compensation"))
    parser.add_argument(HELP_ALL, action="help", help="list every flag, those of methods' settings too")


def settings_from(args: argparse.Namespace, recipe: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings that were given, flat, as `MoreauPrunerConfig.from_dict` takes them; or a ConfigError.

    A recipe's settings say whose `--criterion-args` are where no flag does.
    """
    known = {one.name for one in settings_of(MoreauPrunerConfig)} | {f"of_{name}" for name in known_names()}
    found = {name.removeprefix("of_"): value for name, value in _given(args).items() if name in known}
    for field in _TOGETHER:
        if text := getattr(args, f"{field}_args", None):
            found |= _together(field, found.get(field) or name_of((recipe or {}).get(field)), text, found, args)
    return found


def config_from(args: argparse.Namespace) -> MoreauPrunerConfig:
    """Makes the config of the flags that were given, over the preset; a ConfigError where one contradicts another."""
    return MoreauPrunerConfig.preset(args.preset or "best", **settings_from(args))


def add_step(group: Any, *kinds: type, prefix: str = "", shown: Collection[str] | None = None) -> None:
    """Adds a flag for each field of some classes that the parser does not have yet; what is not given is `None`.

    Where `--help` lists only those in `shown`, the others can be given together, by `--PREFIX-args`.
    """
    if shown is not None:
        name = prefix.rstrip("_")
        add(group, f"--{name}-args K=V,…", f"its settings (optimum-moreau {name} --help lists them)")
    taken = {action.dest for action in group._actions}
    for one in _fields(*kinds):
        if (dest := f"{prefix}{one.name}") not in taken:
            text = one.help
            if isinstance(one.default, (int, float, str)) and not one.switch:
                text += f" (default {one.default:{'g' if isinstance(one.default, float) else ''}})"
            _add_flag(group, one, dest, text if shown is None or one.name in shown else rarely(text), prefix)


def step_from(args: argparse.Namespace, *kinds: type, prefix: str = "") -> dict[str, Any]:
    """The fields whose flags were given, each by its own or in `--recover-args epochs=2,lr=1e-4`; or a ConfigError."""
    given, fields = _given(args), {one.name: one for one in _fields(*kinds)}
    own = {name: given[f"{prefix}{name}"] for name in fields if f"{prefix}{name}" in given}
    short, flag = {one.flag: name for name, one in fields.items()}, f"--{prefix}args".replace("_", "-")
    found = {}
    for name, _, value in _pairs(given.get(f"{prefix}args", ""), {*fields, *filter(None, short)}):
        field = short.get(name, name.replace("-", "_"))
        if field not in fields:
            hint = suggestion(field, fields)
            raise ConfigError(f"{flag}: unknown setting '{name}'.{hint} Known: {', '.join(fields)}")
        try:
            found[field] = fields[field].read(value or ("yes" if fields[field].switch else ""))
        except ConfigError as error:
            raise ConfigError(f"{flag}: {name}: {error}") from None
    return found | own


def _fields(*kinds: type) -> list[Setting]:
    """All but those that hold another class's."""
    return [one for kind in kinds for one in settings_of(kind) if not hasattr(one.kind, "__pydantic_fields__")]


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if value is not None}


def _pairs(text: str, switches: Collection[str] | None = None) -> Iterator[list[str]]:
    """`name`, `=` and `value` of each part of `name=value,…`; where switches are known, values may hold commas."""
    parts: list[str] = []
    for part in text.split(",") if text else ():
        if parts and switches is not None and "=" not in part and part.strip().replace("-", "_") not in switches:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return ([one.strip() for one in part.partition("=")] for part in parts)


def _add_fields(group: Any, fields: Iterable[Setting], skip: Iterable[str] = ()) -> None:
    """A flag for each field; of a field that names a method, also one for its settings."""
    taken: set[str] = set()
    for one in fields:
        _add_flag(group, one, one.name, rarely(one.help) if one.rare else one.help)
        taken |= {one.name, one.was}
        if one.name in METHODS:
            known, verb = list(METHODS[one.name]), f"optimum-moreau {_PLURAL[one.name]}"
            names = ", ".join(known) if len(known) < 10 else f"{known[0]}, taylor, wanda, …"
            group._group_actions[-1].help = f"{one.help}: {names} ({verb})"
            add(group, f"--{one.name}-args K=V,…", f"its settings, as steps=5,… ({verb} NAME lists them)")
        elif one.name == "mask":
            names = ", ".join(each.name for each in settings_of(Mask) if each.name != "pattern")
            add(group, "--mask-args K=V,…", f"its settings: {names}")
    for one in (each for field, method in groups() if field not in skip for each in settings_of(method)):
        if one.was not in taken:
            taken.add(one.was)
            _add_flag(group, one, f"of_{one.was}", rarely(one.help))


def _add_flag(group: Any, one: Setting, dest: str, text: str, prefix: str = "") -> None:
    """Adds the flag of a field, named as its destination; its short name, if it has one, takes the prefix."""

    def read(value: str) -> Any:
        try:
            return one.read(value)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    long = f"--{dest.removeprefix('of_')}".replace("_", "-")
    flag = f"--{prefix}{one.flag}".replace("_", "-") if one.flag else long
    unlisted = [long] if one.flag else []  # they take no room in the list
    unlisted += [f"--{one.was}"] if one.was != one.name and not dest.startswith("of_") else []
    for other in unlisted:
        group.add_argument(other, dest=dest, type=read, help=argparse.SUPPRESS)
    text = text.replace("%", "%%")
    if one.switch:
        group.add_argument(flag, dest=dest, action="store_true", default=None, help=text)
        return
    choices = f": {' | '.join(one.choices)}" if one.choices and text != argparse.SUPPRESS else ""
    group.add_argument(flag, dest=dest, type=read, metavar=one.metavar or one.kind_word, help=text + choices)


def _together(field: str, value: Any, text: str, given: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a method, or of the mask, given as `k=v,k=v`; flat."""
    kind: Any = Mask
    if field != "mask":
        kind = METHODS[field].get(name_of(value or _meant(field, given, args)))
    found, flat = {}, {one.name: one.was for one in settings_of(kind)}
    for name, equals, one in _pairs(text):
        if not equals:
            raise ConfigError(f"--{field}-args: '{name}' is not NAME=VALUE")
        if flat.get(name) in found:
            raise ConfigError(f"--{field}-args: {name} is given twice; give it once")
        found[flat[name]] = parsed(kind, name, one)
    return found


def _meant(field: str, given: Mapping[str, Any], args: argparse.Namespace) -> Any:
    """The method that the preset takes beside what was given."""
    preset = getattr(args, "preset", None) or "best"
    try:
        return getattr(MoreauPrunerConfig.preset(preset, **given), field)
    except ConfigError:  # said where the config is made
        defaults = {one.name: one.default for one in settings_of(MoreauPrunerConfig)}
        return MEASURED.get(preset, {}).get(field) or defaults[field]
