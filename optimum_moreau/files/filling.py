"""Dataclasses filled with what was read: every field has the type that it is declared with."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import CheckpointError, MoreauError, first_line
from ..registry import suggestion
from .values import shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def filled(kind: type[T], values: Any, where: object, what: str, error: type[MoreauError] = CheckpointError) -> T:
    """Makes a dataclass of values that were read; every field, nested ones too, has the type that it is declared with.

    Args:
        kind: the dataclass.
        values: of its fields, as JSON holds them.
        where: the file, for messages.
        what: as for `read_json`.
        error: the kind that is raised.

    Raises:
        MoreauError: of that kind: a field is missing, unknown, or of another type.
    """
    from pydantic import ValidationError

    if not isinstance(values, Mapping):
        raise error(f"{where}: cannot be read as {what}: {shown(values)} is no dictionary")
    known = [one.name for one in fields(kind) if one.init]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise error(
                f"{where}: cannot be read as {what}: unknown field {shown(name)}.{suggestion(str(name), known)}"
            )
    try:
        text = json.dumps([dict(values)])
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(
            f"{where}: cannot be read as {what}: holds what JSON has no value for ({first_line(problem)})"
        ) from problem
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
        raise error(f"{where}: cannot be read as {what}: {field}: {words}{value}") from problem


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    """Of a list of one: a list hands its settings on to the dataclass in it, and to those nested there."""
    from pydantic import ConfigDict, TypeAdapter

    settings = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(list[cast(type, kind)], config=settings)  # type: ignore[arg-type, misc]
