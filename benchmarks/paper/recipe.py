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
from study import DENSE, check_names

from optimum_moreau import MoreauPrunerConfig, RecoveryConfig
from optimum_moreau.errors import ConfigError
from optimum_moreau.evaluation.zero_shot import METRICS

FOLDER = Path(__file__).parent
TABLES = sorted((file.stem for file in FOLDER.glob("table*.yaml")), key=lambda name: int(name.removeprefix("table")))
DIFF, AVERAGE, UNTUNED = "Diff", "average", "untuned"
# Tuned or not → which of the recovery sets that the runner is given it learns from.
RECOVERIES = {UNTUNED: None, "tuned": "recovery", "tuned on the larger set": "larger_recovery"}
AXES = {"ratio": "ratios", "recovery": "recoveries", "row": "rows", "samples": "samples", "dtype": "dtypes"}


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    config: Mapping[str, Any] = field(default_factory=dict)  # over the table's protocol; empty for the dense model
    recoveries: Sequence[str] = ()  # where the paper does not have all of the table's
    missing: str = ""  # why the row is not run here


@dataclass(frozen=True)
class Place:
    """Where a figure stands in a table."""

    ratio: str
    recovery: str
    row: str
    samples: int  # calibration windows
    dtype: str  # of the weights; `auto`, as saved; or `Diff`


@dataclass(frozen=True)
class Recipe:
    """A table of the paper."""

    name: str
    title: str
    model: str  # whose figures are published
    rows: Mapping[str, Row]
    ratios: Mapping[str, float]  # label → share of the units in scope to remove
    texts: Sequence[str]  # columns of perplexities
    published: Mapping[Place, Mapping[str, float | list[float]]]  # column → figure, or mean and deviation
    protocol: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Sequence[str] = ("auto",)  # with two, their difference is a row of its own
    samples: Sequence[int] = (10,)
    recoveries: Mapping[str, Mapping[str, Any] | None] = field(default_factory=lambda: {UNTUNED: None})
    tasks: Sequence[str] = ()  # columns of accuracies, in percent; their mean is the column `average`
    notes: Sequence[str] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The paper's columns."""
        return (*self.texts, *self.tasks, *((AVERAGE,) if self.tasks else ()))

    def place(self, **axes: Any) -> Place:
        """A place whose axes are the table's first where nothing else is said; the dense model is not tuned."""
        first = {axis: next(iter(getattr(self, of))) for axis, of in AXES.items()}
        return Place(**{**first, **({"recovery": UNTUNED} if axes["row"] == DENSE else {}), **axes})

    def places(self) -> list[Place]:
        """Every place of the table, in its order: those to run, and those of rows that are not run here."""
        found = [self.place(row=DENSE, dtype=dtype) for dtype in self.dtypes if DENSE in self.rows]
        dtypes = (*self.dtypes, DIFF) if len(self.dtypes) > 1 else self.dtypes
        for ratio in self.ratios:
            for recovery in self.recoveries:
                for label, row in self.rows.items():
                    if label != DENSE and recovery in (row.recoveries or self.recoveries):
                        found += [Place(ratio, recovery, label, n, dtype) for n in self.samples for dtype in dtypes]
        return found

    def fields(self, row: str, ratio: str) -> dict[str, Any]:
        """What a row says of MoreauPrunerConfig, beside the paper's protocol; of the dense model nothing."""
        return {**self.protocol, **self.rows[row].config, "unit_ratio": self.ratios[ratio]} if row != DENSE else {}

    def config(self, row: str, ratio: str, samples: int, seed: int) -> MoreauPrunerConfig:
        """How a row is pruned: the paper's protocol and what the row changes of it."""
        fields = self.fields(row, ratio)
        return MoreauPrunerConfig.paper(fields.pop("criterion"), calibration_samples=samples, seed=seed, **fields)

    def recovery(self, name: str, **changes: Any) -> RecoveryConfig:
        """How a model is tuned."""
        return RecoveryConfig(**{**(self.recoveries[name] or {}), **changes})


def read_recipe(name: str) -> Recipe:
    """Reads a recipe and checks that every published figure has a place and a column in it.

    Raises:
        ConfigError: an unknown table; or a row, value or figure that is not one of the table's.
    """
    check_names([name], TABLES, "table")
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    check_names(values, Recipe.__annotations__, "entry")
    published = values.pop("published")
    try:
        values["rows"] = {label: Row(**row) for label, row in values["rows"].items()}
        recipe = Recipe(name, published={}, **values)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{name}.yaml: {error}") from error
    check_names(recipe.recoveries, RECOVERIES, "recovery")
    check_names(recipe.tasks, METRICS, "task")
    for label, row in recipe.rows.items():
        if label != DENSE and not row.missing:
            recipe.config(label, next(iter(recipe.ratios)), recipe.samples[0], seed=0)  # raises ConfigError
    for recovery in recipe.recoveries:
        recipe.recovery(recovery)
    return replace(recipe, published=_published(recipe, **published))


def _published(recipe: Recipe, columns: list[str], figures: list[list[Any]]) -> dict[Place, dict[str, Any]]:
    check_names([column for column in columns if column not in AXES], recipe.columns, f"column of {recipe.name}")
    places, found = recipe.places(), {}
    for line in figures:
        values = dict(zip(columns, line, strict=True))
        axes = {axis: values.pop(axis) for axis in AXES if axis in values}
        place = recipe.place(**axes)
        if place not in places or place in found:
            what = "there twice" if place in found else "no place of the table"
            raise ConfigError(f"{recipe.name}: {axes} is {what}")
        found[place] = {column: value for column, value in values.items() if value is not None}
    return found
