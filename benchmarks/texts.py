"""The models that are measured, and the text that each is scored and measured on (`studies/models.yaml`).

A text is a file; documents of one, `{file: …, documents: [start, end]}`, counted from 0, the end left out; or a list of
such, mixed in equal parts: each of the others gives as many characters as the first, in as many documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from optimum_moreau.data.sources import read_documents, read_records
from optimum_moreau.errors import ConfigError
from optimum_moreau.registry import suggestion

FOLDER = Path(__file__).parent / "studies"
SHARED = Path(__file__).parents[2] / "shared"

Text = Path | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True)
class Subject:
    """A real model, and the text it knows."""

    name: str
    folder: Path
    calibration: Text  # that it is scored on
    evaluation: Text  # that it is measured on; one file that is both is split in halves
    text: str  # what that is, in words
    texts: Mapping[str, Text] = field(default_factory=dict)  # others, by name: to score or to measure on

    def documents(self) -> tuple[list[str], list[str]]:
        """The documents to calibrate on, and those to measure on."""
        calibration = documents_of(self.calibration)
        if self.evaluation != self.calibration:
            return calibration, documents_of(self.evaluation)
        half = len(calibration) // 2
        return calibration[:half], calibration[half:]

    def named(self, name: str) -> list[str]:
        """The documents of another text.

        Raises:
            ConfigError: the model has none of that name.
        """
        if name not in self.texts:
            known = ", ".join(self.texts) or "none"
            raise ConfigError(f"{self.name}: unknown text '{name}'.{suggestion(name, self.texts)} Known: {known}")
        return documents_of(self.texts[name])


def subjects(shared: Path) -> dict[str, Subject]:
    """Every model of `models.yaml`, by name; what is no absolute path lies in `shared`."""
    found = yaml.safe_load((FOLDER / "models.yaml").read_text(encoding="utf-8"))
    texts = {name: one.pop("text") for name, one in found.items()}
    return {name: Subject(name, text=texts[name], **_placed(one, shared)) for name, one in found.items()}


def _placed(value: Any, shared: Path) -> Any:
    """The same with every path in its place."""
    if isinstance(value, str):
        return shared / Path(value).expanduser()
    if isinstance(value, list):
        return [_placed(one, shared) for one in value]
    if isinstance(value, dict):
        return {key: one if key == "documents" else _placed(one, shared) for key, one in value.items()}
    return value


def documents_of(text: Text) -> list[str]:
    """The documents of a text; one is the same every time."""
    if isinstance(text, Mapping):
        return _read(text["file"])[slice(*text["documents"])]
    if isinstance(text, Path):
        return _read(text)
    first, *others = [documents_of(one) for one in text]
    size = sum(map(len, first))
    return [*first, *(piece for other in others for piece in _pieces("\n\n".join(other)[:size], len(first)))]


def _read(file: Path) -> list[str]:
    """The documents of a file; of a record of an instruction, its parts one after the other."""
    if file.suffix != ".json":
        return read_documents(file)
    parts = ([record.get(key) for key in ("instruction", "input", "output")] for record in read_records(file)[0])
    return ["\n\n".join(one for one in found if one) for found in parts]


def _pieces(text: str, count: int) -> list[str]:
    """A text in so many pieces of about one length, each but the first begun at white space."""
    cuts = [0]
    for i in range(1, count):
        place = max(i * len(text) // count, cuts[-1])
        cuts.append(next((at for at in range(place, len(text)) if text[at].isspace()), len(text)))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
