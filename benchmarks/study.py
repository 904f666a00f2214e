"""A study as data: which models are pruned how, and what is measured of them.

`studies/NAME.yaml` holds `about`, `models`, `seeds`, `segments` (of 128 tokens), `protocols` and `rows` (name → fields
of MoreauPrunerConfig, flat), and `measures` (name → its settings; measures.py). A run's config is its protocol's fields
and, over them, its row's. Either may also say `preset` (default: plain) and `scope: all`, every layer. A row may say
`models` and `protocols`, where it has not all of the study's; these may map a protocol to fields over the row's.
`studies/models.yaml` holds the models, each with the texts it is scored and measured on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from measures import MEASURES

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.data.sources import read_documents
from optimum_moreau.errors import ConfigError
from optimum_moreau.registry import suggestion

FOLDER = Path(__file__).parent / "studies"
SHARED = Path(__file__).parents[2] / "shared"
DENSE = "dense"  # the row of the model that is not pruned


@dataclass(frozen=True)
class Subject:
    """A real model, the text it knows, and how that text is split.

    Attributes:
        name: in rows.
        folder: of the model.
        calibration: file of the text that it is scored on.
        evaluation: file of the text that it is measured on; one that is both is split in halves.
        text: what that is, in words.
    """

    name: str
    folder: Path
    calibration: Path
    evaluation: Path
    text: str

    def documents(self) -> tuple[list[str], list[str]]:
        """The documents to calibrate on, and those to measure on."""
        calibration = read_documents(self.calibration)
        if self.evaluation != self.calibration:
            return calibration, read_documents(self.evaluation)
        half = len(calibration) // 2
        return calibration[:half], calibration[half:]


def subjects(shared: Path) -> dict[str, Subject]:
    """Every model of `models.yaml`, by name; what is no absolute path lies in `shared`."""
    found = yaml.safe_load((FOLDER / "models.yaml").read_text(encoding="utf-8"))
    texts = {name: one.pop("text") for name, one in found.items()}
    paths = {name: {key: shared / Path(path).expanduser() for key, path in one.items()} for name, one in found.items()}
    return {name: Subject(name, text=texts[name], **paths[name]) for name in found}


@dataclass(frozen=True)
class Study:
    """What a file of `studies/` says; its attributes are the file's entries.

    Attributes:
        about: what is asked, in a paragraph.
        models: names of subjects.
        seeds: draws of the calibration windows, noise and random scores.
        segments: of the text that is measured on, at most.
        protocols: name → fields.
        rows: name → fields.
        measures: name → settings.
    """

    about: str
    models: list[str]
    seeds: int
    segments: int
    protocols: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, Mapping[str, Any] | None]

    def runs(self, model: str, rows: Iterable[str], protocols: Iterable[str], seeds: int) -> Iterator[tuple]:
        """Protocol, row and seed of every run of a model; those that share scores lie near each other."""
        for row in rows:
            fields = self.rows[row]
            asked = [name for name in protocols if name in fields.get("protocols", self.protocols)]
            if model in fields.get("models", self.models):
                yield from ((protocol, row, seed) for seed in range(seeds) for protocol in asked)

    def config(self, protocol: str, row: str, seed: int, depth: int) -> MoreauPrunerConfig:
        """How a run is pruned.

        Args:
            protocol: its name.
            row: its name.
            seed: of the draw.
            depth: number of layers of the model.

        Raises:
            ConfigError: a field is not valid.
        """
        fields = {**self.protocols[protocol], **self.rows[row], "seed": seed}
        fields.pop("models", None)
        only = fields.pop("protocols", None)
        fields |= only[protocol] if isinstance(only, Mapping) else {}
        if (scope := fields.pop("scope", None)) not in (None, "all"):
            raise ConfigError(f"{row}: scope is {scope!r}; it can be 'all', or give ranges of layers")
        if scope:
            fields = {**dict.fromkeys(("attention_layers", "mlp_layers", "whole_layers"), (0, depth)), **fields}
        return MoreauPrunerConfig.preset(fields.pop("preset", "plain"), **fields)


def read_study(file: Path) -> Study:
    """Reads a study; that its rows make configs is found when they run.

    Raises:
        ConfigError: there is no such file, or an entry or a name in it is not known.
    """
    if not file.is_file():
        known = {path.stem for path in FOLDER.glob("*.yaml")} - {"models"}
        raise ConfigError(f"{file}: no such study.{suggestion(file.stem, known)} Known: {', '.join(sorted(known))}")
    try:
        study = Study(**yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}") from error
    check_names(study.models, subjects(SHARED), "model")
    check_names(study.measures, MEASURES, "measure")
    for row in study.rows.values():
        check_names(row.get("models", ()), study.models, "model")
        check_names(row.get("protocols", ()), study.protocols, "protocol")
    return study


def check_names(names: Iterable[str], known: Iterable[str], kind: str) -> None:
    """Raises ConfigError for the first name that is not known."""
    known = [str(one) for one in known]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {kind} '{name}'.{suggestion(name, known)} Known: {', '.join(known)}")
