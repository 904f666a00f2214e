"""A table of the paper as data: what it asks of a model, and the figures it publishes, each under its row and column.

`tableN.yaml` holds title, model, the fields of MoreauPrunerConfig that all rows share (`protocol`), the axes (`ratios`,
`dtypes`, `samples`, `recoveries`), the columns (`texts`, `tasks`), the rows, notes, and what the paper published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from optimum_moreau import MoreauPrunerConfig, RecoveryConfig
from optimum_moreau.errors import ConfigError
from optimum_moreau.evaluation.zero_shot import METRICS
from optimum_moreau.registry import suggestion

FOLDER = Path(__file__).parent
TABLES = sorted((file.stem for file in FOLDER.glob("table*.yaml")), key=lambda name: int(name.removeprefix("table")))
DENSE, DIFF, AVERAGE, UNTUNED = "dense", "Diff", "average", "untuned"
# Tuned or not → which of the recovery sets that the runner is given it learns from.
RECOVERIES = {UNTUNED: None, "tuned": "recovery", "tuned on the larger set": "larger recovery"}

AXES = {"ratio": "ratios", "recovery": "recoveries", "row": "rows", "samples": "samples", "dtype": "dtypes"}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        config: fields of MoreauPrunerConfig over the table's protocol; empty for the dense model.
        recoveries: untuned, tuned or both, where the paper does not have all of the table's.
        missing: why the row is not run here; empty where it is.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    recoveries: Sequence[str] = ()
    missing: str = ""


@dataclass(frozen=True, order=True)
class Place:
    """Where a figure stands in a table.

    Attributes:
        ratio: label of the ratio.
        recovery: `untuned`, or what it was tuned on.
        row: label of the row.
        samples: calibration windows.
        dtype: of the weights, `auto` (as saved), or `Diff`.
    """

    ratio: str
    recovery: str
    row: str
    samples: int
    dtype: str


@dataclass(frozen=True)
class Recipe:
    """A table of the paper.

    Attributes:
        name: `table3`.
        title: the paper's.
        model: whose figures are published.
        rows: label → row.
        protocol: fields of MoreauPrunerConfig that all rows share.
        ratios: label → share of the units in scope to remove.
        dtypes: of the weights; with two, their difference is a row of its own.
        samples: calibration windows.
        recoveries: tuned or not → fields of RecoveryConfig.
        texts: columns of perplexities.
        tasks: columns of accuracies, in percent; their mean is the column `average`.
        published: place → column → figure, or mean and deviation.
        notes: to be read with the figures.
    """

    name: str
    title: str
    model: str
    rows: Mapping[str, Row]
    ratios: Mapping[str, float]
    texts: Sequence[str]
    published: Mapping[Place, Mapping[str, float | list[float]]]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Sequence[str] = ("auto",)
    samples: Sequence[int] = (10,)
    recoveries: Mapping[str, Mapping[str, Any] | None] = field(default_factory=lambda: {UNTUNED: None})
    tasks: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The paper's columns."""
        return (*self.texts, *self.tasks, *((AVERAGE,) if self.tasks else ()))

    def places(self) -> list[Place]:
        """Every place of the table, in its order: those to run, and those of rows that are not run here."""
        found = []
        if DENSE in self.rows:
            found = [self._first(row=DENSE, recovery=UNTUNED, dtype=dtype) for dtype in self.dtypes]
        dtypes = (*self.dtypes, DIFF) if len(self.dtypes) > 1 else self.dtypes
        for ratio in self.ratios:
            for recovery in self.recoveries:
                for label, row in self.rows.items():
                    if label != DENSE and recovery in (row.recoveries or self.recoveries):
                        found += [Place(ratio, recovery, label, n, dtype) for n in self.samples for dtype in dtypes]
        return found

    def fields(self, row: str, ratio: str) -> dict[str, Any]:
        """What a row says of MoreauPrunerConfig, beside the paper's protocol."""
        return {**self.protocol, **self.rows[row].config, "unit_ratio": self.ratios[ratio]}

    def config(self, row: str, ratio: str, samples: int, seed: int) -> MoreauPrunerConfig:
        """How a row is pruned: the paper's protocol and what the row changes of it."""
        fields = self.fields(row, ratio)
        return MoreauPrunerConfig.paper(fields.pop("criterion"), calibration_samples=samples, seed=seed, **fields)

    def recovery(self, name: str, **changes: Any) -> RecoveryConfig:
        """How a model is tuned."""
        return RecoveryConfig(**{**(self.recoveries[name] or {}), **changes})

    def _first(self, **values: Any) -> Place:
        """A place whose axes are the table's first where nothing else is said."""
        first = {axis: next(iter(getattr(self, of)), None) for axis, of in AXES.items()}
        return Place(**{**first, **values})


def read_recipe(name: str) -> Recipe:
    """Reads a recipe and checks that every published figure has a place and a column in it.

    Raises:
        ConfigError: an unknown table; or a row, value or figure that is not one of the table's.
    """
    if name not in TABLES:
        raise ConfigError(f"unknown table '{name}'.{suggestion(name, TABLES)} Known: {', '.join(TABLES)}")
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    if unknown := [entry for entry in values if entry not in Recipe.__annotations__]:
        raise ConfigError(f"{name}.yaml: unknown entry '{unknown[0]}'")
    published = values.pop("published")
    try:
        values["rows"] = {label: Row(**row) for label, row in values["rows"].items()}
        recipe = Recipe(name, published={}, **values)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{name}.yaml: {error}") from error
    _check(recipe)
    return replace(recipe, published=_published(recipe, published))


def _check(recipe: Recipe) -> None:
    for label, row in recipe.rows.items():
        if label != DENSE and not row.missing:
            recipe.config(label, next(iter(recipe.ratios)), recipe.samples[0], seed=0)  # raises ConfigError
    for kind, names, known in (("recovery", recipe.recoveries, RECOVERIES), ("task", recipe.tasks, METRICS)):
        for name in names:
            if name not in known:
                raise ConfigError(f"{recipe.name}: unknown {kind} '{name}'.{suggestion(name, known)}")
    for name in recipe.recoveries:
        recipe.recovery(name)


def _published(recipe: Recipe, published: Mapping[str, Any]) -> dict[Place, dict[str, Any]]:
    places, found = set(recipe.places()), {}
    for figures in published["figures"]:
        values = dict(zip(published["columns"], figures, strict=True))
        axes = {axis: values.pop(axis) for axis in AXES if axis in values}
        place = recipe._first(**axes)
        if place not in places or place in found:
            raise ConfigError(
                f"{recipe.name}: {axes} is {'there twice' if place in found else 'no place of the table'}"
            )
        for column in values:
            if column not in recipe.columns:
                raise ConfigError(f"{recipe.name}: '{column}' is no column.{suggestion(column, recipe.columns)}")
        found[place] = {column: value for column, value in values.items() if value is not None}
    return found
