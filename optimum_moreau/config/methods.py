"""A method in a config: a name, a dictionary with a name and settings, or an object; in JSON always a dictionary.

And `Mask`, which is given like one: single weights become zero, instead of whole units going.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ..errors import ConfigError
from ..registry import METHODS, Registry
from .settings import Share, setting, settings, settings_of

_MOST_OF_GROUP = 1024  # m of n:m


@settings
class Mask:
    """Which weights of the matrices in scope become zero, and what improves the choice."""

    pattern: str = setting(
        "zeros anywhere, or n of every m consecutive inputs stay: unstructured, 2:4, 4:8, …", default="unstructured"
    )
    sparsity: Share | None = setting("share of the weights in scope that become zero, unstructured (0.5)", default=None)
    group: Literal["row", "layer"] | None = setting(
        "weights compared in an unstructured mask: a row, or the whole matrix (the criterion's)",
        default=None,
        was="mask_group",
    )
    refine: Literal["dsnot", "r2-dsnot"] | None = setting(
        "improves the mask without training (masks/refine.py)", default=None
    )
    update: bool = setting(
        "adjust the weights that stay (optimal brain surgeon, masks/obs.py); sparsegpt always does", default=False
    )
    permute: bool = setting("put channels in an order for which an n:m mask keeps more score", default=False)
    feed_forward: bool = setting("what is masked reaches the layers behind before these are scored", default=True)
    damping: float = setting("of the update's Hessian, as a share of its mean diagonal", default=0.01, gt=0)

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", self.pattern)
        if self.pattern != "unstructured" and not (found and 0 < int(found[1]) < int(found[2]) <= _MOST_OF_GROUP):
            raise ConfigError(
                f"pattern: '{self.pattern:.40}' is not unstructured, or n:m with 0 < n < m ≤ {_MOST_OF_GROUP}, e.g. 2:4"
            )
        if self.permute and not found:
            raise ConfigError(f"permute: concerns n:m masks, not '{self.pattern}'; give a pattern as well: 2:4, 4:8, …")
        if found and self.group is not None:
            compares = f"'{self.pattern}' compares every {found[2]} inputs"
            raise ConfigError(f"mask_group: {compares}; leave '{self.group}' out")
        if found and self.sparsity is not None:
            raise ConfigError(f"sparsity: '{self.pattern}' says itself how many weights stay; leave sparsity out")

    @property
    def structured(self) -> bool:
        """Whether it is n:m."""
        return self.pattern != "unstructured"


def made(registry: Registry, field: str, value: Any) -> Any:
    """Makes the method that a value means: a name, a dictionary of `name` and settings, or an object.

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
