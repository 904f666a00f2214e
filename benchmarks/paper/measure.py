"""Runs a recipe on a model: score once for every row, dtype, calibration size and seed; cut at every ratio; measure."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recipe import AVERAGE, DENSE, DIFF, RECOVERIES, Place, Recipe
from transformers import PreTrainedModel

from optimum_moreau import MoreauPruner, PruningPlan, perplexity
from optimum_moreau.data.sources import model_reference, read_documents, source_name
from optimum_moreau.errors import DataError
from optimum_moreau.evaluation.zero_shot import zero_shot
from optimum_moreau.loading import load_config, load_model, load_tokenizer
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.registry import suggestion

Run = dict[str, Any]  # of one place and seed: model, settings, the place's axes, seed, figures, removed, seconds


@dataclass(frozen=True)
class Subject:
    """What a recipe is run on, and how far.

    Attributes:
        model: folder or Hub id.
        texts: column → text of a perplexity.
        calibration: text to score on.
        recoveries: `recovery` and `larger recovery` → records to tune on; what is not there is not tuned.
        tasks: measure zero-shot accuracy, on the files of `task_path` or else on lm-eval's own.
        task_path: folder of task files.
        limit: only the first so many questions of each task.
        max_segments: only the first so many of each text.
        max_samples: at most so many calibration windows.
        lr_scale: times the recipe's learning rates.
        tuning: fields of RecoveryConfig over the recipe's (`max_steps`, `micro_batch_size`).
    """

    model: str
    texts: Mapping[str, str]
    calibration: str | None
    recoveries: Mapping[str, str] = field(default_factory=dict)
    tasks: bool = False
    task_path: Path | None = None
    limit: int | None = None
    max_segments: int | None = None
    max_samples: int | None = None
    lr_scale: float = 1.0
    tuning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model's name for records."""
        return model_reference(self.model) or self.model

    def settings(self, recipe: Recipe, recovery: str) -> dict[str, Any]:
        """What figures depend on beside place and seed, for the record."""
        found: dict[str, Any] = {
            "texts": {name: source_name(source) for name, source in self.texts.items()},
            "calibration": source_name(self.calibration),
            "max_segments": self.max_segments,
        }
        if self.tasks and recipe.tasks:
            found |= {"tasks": True, "limit": self.limit}
        if (records := RECOVERIES[recovery]) is not None:
            tuning = recipe.recovery(recovery)
            found |= {
                "recovery": source_name(self.recoveries[records]),
                "epochs": tuning.epochs,
                "max_steps": self.tuning.get("max_steps"),
                "learning_rate": self.lr_scale * tuning.learning_rate,
            }
        return found


def places_to_run(recipe: Recipe, subject: Subject) -> list[Place]:
    """The places of a table that a subject can fill; calibration sizes above its most are that size."""
    found = []
    for place in recipe.places():
        records = RECOVERIES[place.recovery]
        if place.dtype == DIFF or recipe.rows[place.row].missing or (records and records not in subject.recoveries):
            continue
        found.append(replace(place, samples=min(place.samples, subject.max_samples or place.samples)))
    return list(dict.fromkeys(found))


def measure(recipe: Recipe, subject: Subject, seeds: int, done: list[Run]) -> Iterator[Run]:
    """Yields a run for every place and seed; one that was done before, for this table or another, as it was found.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    bench = _Bench(recipe, subject)
    before = {identity(run): run for run in done}
    groups: dict[tuple[str, str, int], list[Place]] = {}  # places that share their scores
    for place in places_to_run(recipe, subject):
        groups.setdefault((place.dtype, place.row, place.samples), []).append(place)
    for (_, row, _), places in groups.items():
        for seed in range(1 if row == DENSE else seeds):
            left = []
            for place in places:
                pruning = recipe.fields(place.row, place.ratio) if place.row != DENSE else {}
                run = {"model": subject.name, **vars(place), "seed": seed, "pruning": pruning}
                run["settings"] = subject.settings(recipe, place.recovery)
                if (found := before.get(identity(run))) is not None:
                    yield {**run, **{key: found[key] for key in ("figures", "removed", "seconds")}}
                else:
                    left.append((place, run))
            start = time.perf_counter()
            plans = bench.plans([place for place, _ in left], seed) if left and row != DENSE else {}
            scoring = time.perf_counter() - start
            for place, run in left:
                start = time.perf_counter()
                removed, figures = bench.fill(place, plans.get(place.ratio), seed)
                seconds = {"scoring": round(scoring, 2), "rest": round(time.perf_counter() - start, 2)}
                yield {**run, "figures": figures, "removed": removed, "seconds": seconds}


def identity(run: Run) -> str:
    """Equal for runs that give the same figures, whatever row of whatever table they fill."""
    decides = ("model", "samples", "dtype", "recovery", "seed", "pruning", "settings")
    return json.dumps([run[key] for key in decides], sort_keys=True)


class _Bench:
    """A recipe and its subject, whose tokenizer, texts and tasks are read once; each method loads the model anew.

    Args:
        recipe: of the table.
        subject: what it is run on.
    """

    def __init__(self, recipe: Recipe, subject: Subject):
        load_config(subject.model)  # whether there is a model at all
        self.recipe, self.subject = recipe, subject
        self.tokenizer = load_tokenizer(subject.model)
        self.texts = {name: read_documents(text, tokenizer=self.tokenizer) for name, text in subject.texts.items()}
        self.tasks = _tasks(recipe, subject)

    def plans(self, places: list[Place], seed: int) -> dict[str, PruningPlan]:
        """The plans of every ratio, from one scoring."""
        first = places[0]
        model = load_model(self.subject.model, dtype=first.dtype)
        configs = {
            place.ratio: self.recipe.config(first.row, place.ratio, first.samples, seed).resolve(model.config)
            for place in places
        }
        pruner = MoreauPruner(configs[first.ratio], tokenizer=self.tokenizer)
        _, scores = pruner.plan(model, self.subject.calibration)
        shape = model_shape(model)
        return {ratio: make_plan(scores, shape, config) for ratio, config in configs.items()}

    def fill(self, place: Place, plan: PruningPlan | None, seed: int) -> tuple[float, dict[str, float]]:
        """The share of the parameters removed, and the figures, of the dense model where there is no plan."""
        model, removed = load_model(self.subject.model, dtype=place.dtype), 0.0
        if plan is not None:
            pruner = MoreauPruner(tokenizer=self.tokenizer)
            removed = pruner.apply(model, plan).summary.ratio_achieved
            if (records := RECOVERIES[place.recovery]) is not None:
                config = self.recipe.recovery(place.recovery, seed=seed, **self.subject.tuning)
                positions = getattr(model.config, "max_position_embeddings", None) or config.sequence_length
                length, rate = min(config.sequence_length, positions), self.subject.lr_scale * config.learning_rate
                config = replace(config, learning_rate=rate, sequence_length=length)
                pruner.recover(self.subject.recoveries[records], config)
        return removed, self._figures(model)

    def _figures(self, model: PreTrainedModel) -> dict[str, float]:
        """Perplexities, and accuracies in percent."""
        segments, limit = self.subject.max_segments, self.subject.limit
        found = {
            name: perplexity(model, self.tokenizer, text, max_segments=segments).perplexity
            for name, text in self.texts.items()
        }
        if self.tasks:
            names = tuple(self.tasks.values())
            accuracy = zero_shot(model, self.tokenizer, names, task_path=self.subject.task_path, limit=limit)
            found |= {task: 100 * one.value for task, one in zip(self.tasks, accuracy.tasks, strict=True)}
            found[AVERAGE] = 100 * accuracy.average
        return found


def _tasks(recipe: Recipe, subject: Subject) -> dict[str, str]:
    """Column → task: a file of the folder, of the task's name or a piece of it (`hellaswag_2k`); or lm-eval's own."""
    if not subject.tasks:
        return {}
    if subject.task_path is None:
        return {task: task for task in recipe.tasks}
    files = {file.stem for file in subject.task_path.glob("*") if file.suffix in (".yaml", ".jsonl")}
    found = {}
    for task in recipe.tasks:
        fitting = [task] if task in files else sorted(name for name in files if name.startswith(f"{task}_"))
        if not fitting:
            raise DataError(f"{subject.task_path}: holds no task '{task}' (.yaml or .jsonl).{suggestion(task, files)}")
        found[task] = fitting[0]
    return found
