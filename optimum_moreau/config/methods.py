"""A method in a config: a name, a dictionary with a name and settings, or an object; in JSON always a dictionary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError
from ..registry import METHODS, Registry
from .mask import Mask
from .settings import settings_of


def made(registry: Registry, field: str, value: Any) -> Any:
    """Makes the method that a value means.

    Args:
        registry: of its kind.
        field: of the config, for messages.
        value: a name, a dictionary of `name` and settings, or an object.

    Raises:
        ConfigError: there is none of this name, or a setting of it is not valid.
    """
    if isinstance(value, Mapping):
        given = dict(value)
        return _named(registry, field, given.pop("name", None))(**{str(key): one for key, one in given.items()})
    name = getattr(type(value), "name", None)
    if isinstance(name, str) and name in registry and isinstance(value, registry.get(name)):
        return value
    return _named(registry, field, value)()


def groups() -> Iterator[tuple[str, Any]]:
    """The mask, and every method, each with the field of the config where it lies."""
    yield "mask", Mask
    for field, registry in METHODS.items():
        yield from ((field, registry.get(name)) for name in registry)


def mask_of(value: Any) -> Mask | None:
    """Makes the mask that a value means: none, a pattern, a dictionary of settings, or an object."""
    if value is None or isinstance(value, Mask):
        return value
    return Mask(**{str(key): one for key, one in value.items()}) if isinstance(value, Mapping) else Mask(value)


def described(value: Any) -> Any:
    """A field's value as JSON holds it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = {"name": value.name} if hasattr(value, "name") else {}
        return name | {one.name: described(getattr(value, one.name)) for one in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def shown(config: Any) -> dict[str, Any]:
    """The settings that had a part in what was done, each under one name: `criterion`, `criterion.sigma`."""
    found: dict[str, Any] = {}
    for one in settings_of(config):
        value = getattr(config, one.name)
        kind = one.name.removesuffix("_layers").replace("whole", "layers")  # what a layer range is of
        if kind != one.name and kind not in config.targets:
            continue
        if not hasattr(type(value), "__pydantic_fields__"):
            found[one.name] = value
            continue
        found[one.name] = value.pattern if one.name == "mask" else value.name
        if getattr(value, "fits", True):
            own = {f"{one.name}.{each.name}": getattr(value, each.name) for each in settings_of(value)}
            found |= {name: inner for name, inner in own.items() if name != "mask.pattern"}
    return {name: value for name, value in found.items() if value is not None}


def shown_names() -> set[str]:
    """Every name that `shown` may give."""
    from .pruner_config import MoreauPrunerConfig

    found = {f"{field}.{one.name}" for field, method in groups() for one in settings_of(method)}
    return {one.name for one in settings_of(MoreauPrunerConfig)} | found - {"mask.pattern"}


def _named(registry: Registry, field: str, name: Any) -> Any:
    if not isinstance(name, str):
        raise ConfigError(f"{field}: {name!r:.40} is no name; known: {', '.join(registry)}")
    return registry.get(name)
