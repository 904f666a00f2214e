"""Reads flat settings: files of the first edition, and keywords that name a method's setting beside its name.

`{"criterion": "moreau", "steps": 5, "ridge": 0.1}` becomes `{"criterion": {"name": "moreau", "steps": 5}, …}`. Which
method a setting belongs to is read off the methods' own fields, in the order criterion, budget, compensation, mask; a
field that had another name then says so itself (`was`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import ConfigError
from ..registry import CRITERIA, METHODS, suggestion
from .methods import Mask, described, groups
from .settings import owners, settings_of

_NOTHING = object()
logger = logging.getLogger(__name__)


def unflattened(values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Puts each setting where it belongs; what is where it belongs stays as it is.

    The values are of the config's fields, of its methods' settings, or both; `defaults` are the methods that are meant
    where none is given, otherwise those of the fields.

    Raises:
        ConfigError: a name that no config and no method knows, or a switch that is on for no method given.
    """
    from .pruner_config import MoreauPrunerConfig

    own = {one.name: one for one in settings_of(MoreauPrunerConfig)}
    names = {one.was: one.name for one in own.values()} | {name: name for name in own}
    found = {names[str(key)]: value for key, value in values.items() if str(key) in names}
    rest = {str(key): value for key, value in values.items() if str(key) not in names}
    if rest:
        _check_known(rest, own)
        _to_mask(found, rest, (defaults or {}).get("criterion", "moreau-gs"))
        for field in METHODS:
            _to_method(found, rest, field, (defaults or {}).get(field, own[field].default))
    criterion = name_of(found.get("criterion", (defaults or {}).get("criterion", own["criterion"].default)))
    for name, value in rest.items():
        if value is True:
            raise ConfigError(f"{name}: is a setting of {', '.join(owners(name))}; take one of these, or leave it out")
        if value is not None and not _is_default(name, value):
            logger.warning("%s does not use %s: ignored", criterion, name)
    return found


def known_names() -> dict[str, str]:
    """Every flat name → the field of the config under which it lies; a mask's are under `mask`."""
    return {one.was: field for field, method in groups() for one in settings_of(method)}


def _check_known(rest: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    known = known_names()
    for name in rest:
        if name not in known:
            flags = {one.flag: one.name for one in own.values() if one.flag}
            hint = f" Did you mean '{flags[name]}'?" if name in flags else suggestion(name, [*own, *known])
            raise ConfigError(f"MoreauPrunerConfig: unknown field '{name}'.{hint}")


def _to_mask(found: dict[str, Any], rest: dict[str, Any], criterion: Any) -> None:
    pattern = rest.pop("pattern", None)
    pattern = None if pattern == "units" else pattern
    name = name_of(found.get("criterion", criterion))
    of_criterion = {one.was for one in settings_of(CRITERIA.get(name))} if name in CRITERIA else set()
    given = _taken(rest, Mask, of_criterion)
    if pattern is None and found.get("mask") is None:
        for one in settings_of(Mask):
            if one.name in given and not _is_default(one.name, given[one.name]):
                raise ConfigError(f"{one.was}: concerns masks; give a pattern as well: unstructured, 2:4, …")
        return
    if pattern is not None:
        found["mask"] = {"pattern": pattern, **given}
    elif given:
        found["mask"] = {**_settings(found["mask"], "pattern"), **given}


def _to_method(found: dict[str, Any], rest: dict[str, Any], field: str, default: str) -> None:
    value = found.get(field, default)
    name = name_of(value)
    if name not in METHODS[field]:
        return  # said where the config is made
    if given := _taken(rest, METHODS[field].get(name)):
        found[field] = {**_settings(value, "name"), **given}


def _taken(rest: dict[str, Any], kind: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Takes the settings of a method, or of the mask, out of the rest; what is `None` is not given."""
    taken = {one.name: rest.pop(one.was) for one in settings_of(kind) if one.was in rest and one.was not in without}
    return {name: value for name, value in taken.items() if value is not None}


def name_of(value: Any) -> Any:
    """The name of a method that is given in some form: a name, an object, a dictionary; `None` stays."""
    return value.get("name") if isinstance(value, Mapping) else getattr(value, "name", value)


def _settings(value: Any, key: str) -> dict[str, Any]:
    """The settings of a method that is given in some form."""
    if isinstance(value, Mapping):
        return dict(value)
    return {key: value} if isinstance(value, str) else described(value)


def _is_default(name: str, value: Any) -> bool:
    """Whether a flat file says by this no more than that nothing was asked for."""
    defaults = (one.default for _, method in groups() for one in settings_of(method) if one.was == name)
    return next(defaults, _NOTHING) == value
