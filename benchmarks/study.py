"""A study as data: which models are pruned how, and what is measured of them.

`studies/NAME.yaml` holds `about`, `models`, `seeds`, `segments` (of 128 tokens), `protocols` and `rows` (name → fields
of MoreauPrunerConfig, flat), and `measures` (name → its settings; measures.py). A run's config is its protocol's fields
and, over them, its row's. Either may also say `preset` (default: plain) and `scope: all`, every layer. A row may say
`models` and `protocols`, where it has not all of the study's; these may map a protocol to fields over the row's.
`studies/models.yaml` holds the models, each with the texts it is scored and measured on. Below it what runners share.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from measures import MEASURES
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.data.sources import read_documents
from optimum_moreau.errors import ConfigError, DataError
from optimum_moreau.registry import suggestion

FOLDER = Path(__file__).parent / "studies"
SHARED = Path(__file__).parents[2] / "shared"
DENSE = "dense"  # the row of the model that is not pruned


@dataclass(frozen=True)
class Subject:
    """A real model, and the text it knows."""

    name: str
    folder: Path
    calibration: Path  # file of the text that it is scored on
    evaluation: Path  # file of the text that it is measured on; one that is both is split in halves
    text: str  # what that is, in words

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
    """What a file of `studies/` says; its attributes are the file's entries."""

    about: str  # what is asked, in a paragraph
    models: list[str]  # names of subjects
    seeds: int | None  # draws of the calibration windows, noise and random scores; None: a run is not one draw
    segments: int  # of the text that is measured on, at most
    protocols: Mapping[str, Mapping[str, Any]]  # name → fields
    rows: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, Mapping[str, Any] | None]  # name → settings

    def runs(self, model: str, rows: Iterable[str], protocols: Iterable[str], seeds: int | None) -> Iterator[tuple]:
        """Protocol, row and seed of every run of a model; those that share scores lie near each other."""
        draws = [None] if seeds is None else range(seeds)
        for row in rows:
            fields = self.rows[row]
            asked = [name for name in protocols if name in fields.get("protocols", self.protocols)]
            if model in fields.get("models", self.models):
                yield from ((protocol, row, seed) for seed in draws for protocol in asked)

    def config(self, protocol: str, row: str, seed: int | None, depth: int) -> MoreauPrunerConfig:
        """How a run of a model of so many layers is pruned.

        Raises:
            ConfigError: a field is not valid.
        """
        fields = {**self.protocols[protocol], **self.rows[row], "seed": seed or 0}
        fields.pop("models", None)
        if isinstance(only := fields.pop("protocols", None), Mapping):
            fields |= only[protocol]
        if scope := fields.pop("scope", None):
            check_names([str(scope)], ["all"], "scope")
            fields = {**dict.fromkeys(("attention_layers", "mlp_layers", "whole_layers"), (0, depth)), **fields}
        return MoreauPrunerConfig.preset(fields.pop("preset", "plain"), **fields)


def read_study(file: Path) -> Study:
    """Reads a study; that its rows make configs is found when they run.

    Raises:
        ConfigError: there is no such file, or an entry or a name in it is not known.
    """
    if not file.is_file():
        known = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"models"})
        raise ConfigError(f"{file}: no such study.{suggestion(file.stem, known)} Known: {', '.join(known)}")
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


def read_runs(file: Path, key: Callable[[dict[str, Any]], Any]) -> dict[Any, dict[str, Any]]:
    """The runs that a file holds, one a line, by their key.

    Raises:
        DataError: a line is none.
    """
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else (), 1):
        try:
            run = json.loads(line)
            found[key(run)] = run
        except (json.JSONDecodeError, KeyError, TypeError):
            raise DataError(f"{file}:{number}: is no run; remove the line, and that run is made again") from None
    return found


def keep(file: Path, run: dict[str, Any]) -> None:
    """Appends a run to a file, which may not be there yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(run, ensure_ascii=False) + "\n")


def commit() -> str:
    """The commit that is measured, with a plus where files differ from it; nothing outside a repository."""
    if not (FOLDER.parents[1] / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--exclude", "*", "--dirty=+"]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout.strip()


def quiet() -> None:
    """No bars and no warnings beside the runner's own lines."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")
