"""A study as data: which models are pruned how, and what is measured of them.

`studies/NAME.yaml` holds `about`, `models`, `seeds`, `segments` (of 128 tokens), `protocols` and `rows` (name → fields
of MoreauPrunerConfig, flat), and `measures` (name → its settings; measures.py). A run's config is its protocol's fields
and, over them, its row's. Either may also say

    preset: of the config (plain)
    scope: all, every layer
    seeds: draws, where it has fewer than the study
    calibration: name of another text of the model's (models.yaml), instead of its own
    recovery: settings of a recovery on that text, after the cut
    peer: another package that cuts in this one's place (peers.py); of the config it reads size, windows and their draw
    measures: those of the study's `apart` that it is to have too
    models, protocols: of a row, where it has not all; `protocols` may map one to fields over the row's

`apart` are measures that only rows which name them have, or who asks for them by --measures. `order` says which of
`seed`, `protocol` and `row` changes slowest. Below it what runners share.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from measures import MEASURES, OF_MODEL
from peers import PEERS
from texts import FOLDER, SHARED, subjects
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.errors import ConfigError, DataError, PlanError
from optimum_moreau.files import write_text
from optimum_moreau.registry import suggestion

DENSE = "dense"  # the row of the model that is not pruned
KEYS = ("protocol", "row", "seed")  # of a run of a model
MEASURED = "measured"  # of a run, the measures that it has; a line of an older study does not say, and has all
# what a protocol or a row says beside the config: which runs there are, and what the runner does before and after
OWN = ("models", "protocols", "seeds", "measures", "calibration", "recovery", "peer")


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
    apart: Sequence[str] = ()  # measures that are made where they are asked for
    order: Sequence[str] = ("row", "seed", "protocol")  # of the runs; those that share scores lie near each other

    def fields(self, protocol: str, row: str) -> dict[str, Any]:
        """What a protocol and a row say together, those fields included that are not of the config."""
        fields = {**self.protocols[protocol], **self.rows[row]}
        if isinstance(only := fields.get("protocols"), Mapping):
            fields |= only[protocol]
        return fields

    def runs(self, model: str, rows: Iterable[str], protocols: Iterable[str], seeds: int | None) -> Iterator[tuple]:
        """Protocol, row and seed of every run of a model, in the study's order."""
        rows, protocols, found = list(rows), list(protocols), []
        for row in rows:
            if model not in self.rows[row].get("models", self.models):
                continue
            for protocol in protocols:
                if protocol in self.rows[row].get("protocols", self.protocols):
                    found += [(protocol, row, seed) for seed in self._draws(protocol, row, seeds)]
        places = {"protocol": protocols.index, "row": rows.index, "seed": lambda seed: seed or 0}
        yield from sorted(found, key=lambda run: [places[key](run[KEYS.index(key)]) for key in self.order])

    def _draws(self, protocol: str, row: str, seeds: int | None) -> Iterable[int | None]:
        if seeds is None:
            return [None]
        own = (fields.get("seeds", seeds) for fields in (self.protocols[protocol], self.rows[row]))
        return range(min(seeds, *own))

    def wanted(self, row: str, asked: Iterable[str] | None) -> list[str]:
        """The measures that a run of a row is to have, in their order; those asked for instead, where some are."""
        if asked is None:
            rows = self.rows.values() if row == DENSE else [self.rows[row]]
            named = {name for fields in rows for name in fields.get("measures", ())}
            asked = [name for name in self.measures if name not in self.apart or name in named]
        no_plan = row == DENSE or "peer" in self.rows[row]
        return [name for name in self.measures if name in asked and (name in OF_MODEL or not no_plan)]

    def missing(
        self,
        model: str,
        known: Mapping[tuple, Mapping[str, Any]],
        rows: Iterable[str] | None = None,
        protocols: Iterable[str] | None = None,
        measures: Iterable[str] | None = None,
    ) -> Iterator[tuple[tuple, list[str]]]:
        """Of a model's runs that have not all: protocol, row and seed, and the measures that are missing.

        Args:
            model: its name.
            known: model, protocol, row and seed → the run.
            rows: those asked for; all.
            protocols: those asked for; all.
            measures: those asked for, instead of those that each row is to have.
        """
        named = [row for row in rows or self.rows if row != DENSE]
        dense = [("", DENSE, 0)] if self.wanted(DENSE, measures) else []
        for key in [*dense, *self.runs(model, named, protocols or self.protocols, self.seeds)]:
            found, wanted = known.get((model, *key)), self.wanted(key[1], measures)
            if found is None:
                yield key, wanted
            elif MEASURED in found and (left := [one for one in wanted if one not in found[MEASURED]]):
                yield key, left

    def config(self, protocol: str, row: str, seed: int | None, depth: int) -> MoreauPrunerConfig:
        """How a run of a model of so many layers is pruned.

        Raises:
            ConfigError: a field is not valid.
        """
        fields = {**self.fields(protocol, row), "seed": seed or 0}
        fields = {name: value for name, value in fields.items() if name not in OWN}
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
    check_names(study.apart, study.measures, "measure")
    check_names(study.order, KEYS, "key of a run")
    for row in study.rows.values():
        check_names(row.get("measures", ()), study.measures, "measure")
        check_names([row["peer"]] if "peer" in row else (), PEERS, "peer")
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


def keep(file: Path, run: dict[str, Any], key: Callable[[dict[str, Any]], Any] | None = None) -> None:
    """Appends a run to a file, which may not be there yet; by its key, adds what is new to a run that is there.

    Several processes may do so at the same time.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file.parent):
        runs = read_runs(file, key) if key else {}
        if key and key(run) in runs:
            runs[key(run)] |= run
            write_text(file, "".join(f"{_line(one)}\n" for one in runs.values()), PlanError)
            return
        with file.open("a", encoding="utf-8") as opened:
            opened.write(f"{_line(run)}\n")


def _line(run: dict[str, Any]) -> str:
    return json.dumps(run, ensure_ascii=False)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process that asks for it is."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


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
