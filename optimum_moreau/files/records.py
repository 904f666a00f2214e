"""Records: frozen dataclasses that lie in JSON files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from ..errors import CheckpointError, ConfigError, MoreauError
from .filling import filled
from .reading import read_json
from .writing import write_json


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
        """Makes one of what `to_dict` gave.

        Raises:
            ConfigError: it is not that.
        """
        return cls._made(values, "values", ConfigError)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON; raises CheckpointError where that cannot be."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
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
