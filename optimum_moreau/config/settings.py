"""Settings of a method: a frozen dataclass, checked by pydantic, whose fields say what they are for.

A field carries its help, its legal range, what it affects, and the name it had in files of the first edition. Whoever
validates, lists, parses or compares settings reads it there; no other list of fields exists.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from ..errors import ConfigError
from ..registry import METHODS, suggestion

# What a setting decides first: the scores of weights, how these become a unit's, which units may go, the plan, what is
# done to the model by a plan, or only how the work is done.
Affects = Literal["elements", "scores", "scope", "plan", "apply", "work"]
Share = Annotated[float, Field(ge=0, lt=1)]

T = TypeVar("T")
_RULES = ("ge", "gt", "le", "lt")
_SHAPES = {
    "START:END": "START:END, e.g. 4:30, end excluded",
    "SHARE[,SHARE]": "one share, e.g. 0.25, or one for each target: 0.25,0.3",
    "NAMES": "a list of names",
}
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Setting:
    """One field of a settings class.

    Attributes:
        name: of the field.
        default: where nothing is given.
        help: one line.
        kind: its annotation, resolved.
        rules: `ge`, `gt`, `le`, `lt` → bound.
        was: its name in flat files of the first edition, where that was another.
        affects: what it decides first.
        flag: a short name on the command line, beside its own.
        metavar: what stands for its value in a list of flags.
        compared: a comparison of plans leaves it to the user, and does not vary or rule it out itself.
        rare: few people set it.
        symbol: of the paper, where figures show how much it matters.
    """

    name: str
    default: Any
    help: str
    kind: Any
    rules: Mapping[str, float]
    was: str
    affects: Affects = "elements"
    flag: str | None = None
    metavar: str | None = None
    compared: bool = True
    rare: bool = False
    symbol: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The names it may have, if it is one of some names."""
        return tuple(one for part in _parts(self.kind) if get_origin(part) is Literal for one in get_args(part))

    @property
    def switch(self) -> bool:
        """Whether it is off unless it is named."""
        return _parts(self.kind) == (bool,) and not self.default

    @property
    def kind_word(self) -> str:
        """What stands for its value in a list of flags."""
        words = {(int,): "N", (bool,): "yes|no"}
        return "NAME" if self.choices else words.get(_parts(self.kind), "X")

    def read(self, text: str) -> Any:
        """Reads its value from text, as a command line has it.

        Raises:
            ConfigError: it cannot be that.
        """
        parts = _parts(self.kind)
        if text in ("none", "null") and type(None) in get_args(self.kind):
            return None
        if parts == (bool,) and text in ("yes", "no"):
            return text == "yes"
        try:
            if text.endswith("%") and float in parts:  # 20%, as people write it
                text = str(float(text[:-1]) / 100)
            if any(get_origin(part) is tuple for part in parts):
                return _tuple_of(text, self.metavar)
            return TypeAdapter(self.kind).validate_strings(text) if Any not in parts else text
        except (ValidationError, ValueError):
            raise ConfigError(self.legal(text)) from None

    def legal(self, value: Any) -> str:
        """Says of a value that is not legal what would be."""
        parts, shown = _parts(self.kind), f"{value!r:.40}"
        if self.metavar in _SHAPES and isinstance(value, str):
            return f"{shown} is not {_SHAPES[self.metavar]}"
        if self.choices:
            return f"unknown value {shown}.{suggestion(str(value), self.choices)} Known: {', '.join(self.choices)}"
        if bool in parts:
            return f"{shown} is not true or false"
        low, high = self.rules.get("ge", self.rules.get("gt")), self.rules.get("le", self.rules.get("lt"))
        if int in parts and float not in parts:
            if type(value) is int and high is not None and value > high:
                return f"{shown} is more than can be meant; {int(high):,} at most"
            return f"{shown} is not a whole number ≥ {int(low or 0)}"
        if float in parts:
            if low == 0 and high == 1:
                bounds = f"{'[' if 'ge' in self.rules else '('}0, 1{']' if 'le' in self.rules else ')'}"
                return f"{shown} is not a share in {bounds}; 20 % is 0.2"
            bound = f" {'≥' if 'ge' in self.rules else '>'} {low:g}" if low is not None else ""
            text = isinstance(value, str) and re.fullmatch(r"\d+e-?\d+", value)  # as YAML reads it
            return f"{shown} is not a number{bound}{'; in YAML write 1.0e-4, with the point' if text else ''}"
        if parts == (str,):
            return f"{shown} is no text"
        return f"{shown} is not {_SHAPES.get(self.metavar or '', 'a value for it')}"


def setting(
    help: str,
    *,
    default: Any,
    affects: Affects = "elements",
    was: str = "",
    flag: str | None = None,
    metavar: str | None = None,
    compared: bool = True,
    rare: bool = False,
    symbol: str = "",
    **rules: Any,
) -> Any:
    """A field of a settings class; the arguments are the attributes of `Setting`, `rules` pydantic's bounds."""
    extra: dict[str, Any] = {"affects": affects, "flag": flag, "metavar": metavar, "compared": compared, "rare": rare}
    return Field(default, description=help, json_schema_extra=extra | {"was": was, "symbol": symbol}, **rules)


@dataclass_transform(frozen_default=True, field_specifiers=(setting, Field))
def settings(cls: type[T]) -> type[T]:
    """Makes a settings class: frozen, every field checked; what is wrong is a ConfigError of one line.

    A class that has `prepared` is given its keywords through that.
    """
    made: Any = checked(frozen=True, config=_STRICT)(cls)
    validated = made.__init__

    @wraps(validated)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        known = [one.name for one in dataclasses.fields(made) if one.init]
        if len(args) > len(known):
            raise ConfigError(f"{_title(made)}: {len(args)} values for {len(known)} fields; name them")
        values = {**dict(zip(known, args, strict=False)), **values}
        values = made.prepared(values) if hasattr(made, "prepared") else values
        for name in values:
            if name not in known:
                raise ConfigError(_unknown(made, "field", name, known))
        try:
            validated(self, **values)
        except ValidationError as error:
            raise ConfigError(_words(made, error)) from None

    made.__init__ = __init__
    return made


def settings_of(cls: Any) -> Iterator[Setting]:
    """The fields of a settings class, or of a value of one, in their order."""
    kind: Any = cls if isinstance(cls, type) else type(cls)
    for name, info in kind.__pydantic_fields__.items():
        extra = info.json_schema_extra or {}
        bounds = ((rule, one) for one in (*info.metadata, *_annotations(info.annotation)) for rule in _RULES)
        rules = {rule: bound for rule, one in bounds if (bound := getattr(one, rule, None)) is not None}
        about = {**extra, "was": extra.get("was") or name}
        yield Setting(name, info.default, info.description or "", info.annotation, rules, **about)


def deciding(value: Any, *kinds: Affects) -> dict[str, Any]:
    """The settings of a value, and of the methods in it, that affect one of some things first; nested as they are.

    Where not the choice of a method but one of its settings affects them, as of the budget `owl`, that stands under the
    names of both.
    """
    found: dict[str, Any] = {}
    for one in settings_of(value):
        own = getattr(value, one.name)
        if hasattr(type(own), "__pydantic_fields__"):
            inner, name = deciding(own, *kinds), getattr(own, "name", "")
            if one.affects in kinds:
                found[one.name] = {"name": name, **inner}
            elif inner:
                found[f"{one.name} {name}".rstrip()] = inner
        elif one.affects in kinds:
            found[one.name] = own
    return found


def decided_otherwise(then: Any, now: Any, *kinds: Affects) -> list[str]:
    """The names of what affects some things in two configs, and differs; methods that only one has do not count."""
    before, after = deciding(then, *kinds), deciding(now, *kinds)
    return [name for name in after if name in before and after[name] != before[name]]


def parsed(cls: Any, name: str, text: str) -> Any:
    """Reads the value of a field from text, as a command line has it.

    Raises:
        ConfigError: there is no such field, or its value cannot be that.
    """
    found = {one.name: one for one in settings_of(cls)}
    if name not in found:
        raise ConfigError(f"{_unknown(cls, 'setting', name, found)} Known: {', '.join(found)}")
    try:
        return found[name].read(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _tuple_of(text: str, metavar: str | None) -> Any:
    """Reads `4:30`, `attention,mlp`, `0.25`, `0.25,0.3`."""
    if metavar == "START:END":
        start, _, end = text.partition(":")
        return int(start), int(end)
    parts = [part.strip() for part in text.split(",")]
    if metavar == "NAMES":
        return tuple(parts)
    numbers = tuple(float(part) for part in parts)
    return numbers[0] if len(numbers) == 1 else numbers


def owners(name: str) -> list[str]:
    """The methods, of all kinds, that have a setting of this name, or of this one in flat files."""
    every = (registry.get(one) for registry in METHODS.values() for one in registry)
    return [method.name for method in every if name in {each for s in settings_of(method) for each in (s.name, s.was)}]


def _unknown(cls: Any, what: str, name: str, known: Iterable[str]) -> str:
    """Says that a class has no such field, which methods have one if it is a method, and what may be meant."""
    if getattr(cls, "name", "") and (others := owners(name)):
        have = "have" if len(others) > 1 else "has"
        return f"{name}: {cls.name} has no such setting; {', '.join(others)} {have} it.{suggestion(name, known)}"
    return f"{_title(cls)}: unknown {what} '{name}'.{suggestion(name, known)}"


def _title(cls: Any) -> str:
    return str(getattr(cls, "name", "") or cls.__name__)


def _parts(kind: Any) -> tuple[Any, ...]:
    """The kinds of a union, without None."""
    if get_origin(kind) is Annotated:
        return _parts(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return tuple(one for part in get_args(kind) for one in _parts(part))
    return () if kind is type(None) else (kind,)


def _annotations(kind: Any) -> Iterator[Any]:
    for part in get_args(kind) or ():
        if get_origin(part) is Annotated:
            for one in get_args(part)[1:]:
                yield from getattr(one, "metadata", [one])


def _words(cls: Any, error: ValidationError) -> str:
    problem = error.errors()[0]
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        return str(inner)
    name = str(problem["loc"][0]) if problem["loc"] else ""
    found = {one.name: one for one in settings_of(cls)}
    if name not in found:  # a positional one
        index = problem["loc"][0] if problem["loc"] else 0
        name = list(found)[index] if isinstance(index, int) and index < len(found) else name
    if name not in found:
        return f"{_title(cls)}: {problem['msg']}"
    owner = getattr(cls, "name", "")  # of a method: several have settings of one name
    return f"{name}: {found[name].legal(problem['input'])}{f' (a setting of {owner})' if owner else ''}"
