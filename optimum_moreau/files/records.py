"""Dataclasses of what was read, every field of its declared type; records, which lie in JSON files of their own."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import CheckpointError, ConfigError, MoreauError, first_line
from ..registry import suggestion
from .reading import read_json, shown
from .writing import write_json

T = TypeVar("T")


class Record:
    """What every record can: it becomes JSON and is made of it again, of a file in one line of its own mistakes.

    Attributes:
        what: it is, for messages: `a pruning summary`.
        remedy: what to do about one that has a `problem`.
    """

    what: ClassVar[str]
    remedy: ClassVar[str] = ""

    @classmethod
    def parts(cls) -> Mapping[str, type]:
        """Fields that hold a dictionary → the dataclass that it must fill, where it is not empty."""
        return {}

    def problem(self) -> str:
        """What makes it none that can be, although every field has its type; empty if nothing does."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as a dictionary that JSON can hold."""
        return asdict(cast(Any, self))

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Makes one of what `to_dict` gave; raises ConfigError for what it did not."""
        return cls._made(values, "values", ConfigError)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON; raises CheckpointError where that cannot be."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote; raises CheckpointError where the file is missing or damaged."""
        return cls._made(read_json(path, cls.what), path, CheckpointError)

    @classmethod
    def _made(cls, values: Any, where: object, error: type[MoreauError]) -> Self:
        found = filled(cls, values, where, cls.what, error)
        for name, kind in cls.parts().items():
            if inner := getattr(found, name):
                if issubclass(kind, Record):
                    kind._made(inner, f"{where}: {name}", error)
                else:
                    filled(kind, inner, f"{where}: {name}", "the record of one", error)
        try:
            problem = found.problem()
        except MoreauError as raised:
            problem = str(raised)
        if problem:
            raise error(f"{where}: cannot be read as {cls.what}: {problem}{cls.remedy}")
        return found


def filled(kind: type[T], values: Any, where: object, what: str, error: type[MoreauError] = CheckpointError) -> T:
    """Makes a dataclass of values that were read; every field, nested ones too, has the type that it is declared with.

    The values are as JSON holds them; the other arguments as for `parse_json`.

    Raises:
        MoreauError: of that kind: a field is missing, unknown, or of another type.
    """
    unreadable = f"{where}: cannot be read as {what}:"
    if not isinstance(values, Mapping):
        raise error(f"{unreadable} {shown(values)} is no dictionary")
    known = [one.name for one in fields(kind) if one.init]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise error(f"{unreadable} unknown field {shown(name)}.{suggestion(str(name), known)}")
    try:
        text = json.dumps([dict(values)])
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(f"{unreadable} holds what JSON has no value for ({first_line(problem)})") from problem
    try:
        made: T = _adapter(cast(Hashable, kind)).validate_json(text)[0]
        return made
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "it"
        value = "" if first["type"] == "missing" else f", not {shown(first['input'])}"
        words = first["msg"][:1].lower() + first["msg"][1:]
        if first["type"] == "value_error":  # of the dataclass's own check
            raise error(f"{where}: {first['ctx']['error']}") from problem
        if first["type"] == "unexpected_keyword_argument":
            words, value = "is no field of it", ""
        raise error(f"{unreadable} {field}: {words}{value}") from problem


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    """Of a list of one: a list hands its settings on to the dataclass in it, and to those nested there."""
    settings = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(list[cast(type, kind)], config=settings)  # type: ignore[arg-type, misc]
