"""A recipe's runs as markdown: the published figures with the paper's model, the measured ones with theirs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pages import Table
from recipe import AVERAGE, AXES, DENSE, DIFF, RECOVERIES, Place, Recipe

REMOVED = "removed"  # share of the parameters
Run = dict[str, Any]


def report(recipe: Recipe, asked: Namespace, runs: list[Run]) -> str:
    """The table: what the paper published left, what was measured right; then what was left out, and the notes.

    Args:
        recipe: of the table.
        asked: the runner's options.
        runs: of one model, all seeds.
    """
    model, texts = runs[0]["model"], list(runs[0]["settings"]["texts"]) if recipe.texts else []
    drawn = "1 seed" if asked.seeds == 1 else f"{asked.seeds} seeds, mean ± standard deviation"
    axes = [axis for axis in AXES if axis == "row" or len({getattr(place, axis) for place in recipe.places()}) > 1]
    lines = list(_lines(recipe, model, runs, asked.max_samples))
    known = {name for line in lines if line["model"] == model and line["seed"] is not None for name in line}

    def table(columns: Iterable[str], measured: Iterable[str]) -> str:
        shown = [(f"{recipe.model}, paper", name) for name in columns]
        shown += [(model, name) for name in dict.fromkeys(measured) if name in known]
        columns = [{"of": of, "show": name, "as": f"{of}: {name}"} for of, name in shown]
        return Table(
            lines, {"lines": axes, "across": "model", "dense": True, "best": False, "columns": columns}
        ).markdown()

    columns = [name for name in recipe.columns if name not in recipe.tasks]
    parts = [
        f"### {recipe.name.replace('table', 'Table ')}: {recipe.title}",
        f"Left the paper's figures, of {recipe.model}; right those measured on {model}, {drawn}.\n"
        + "\n".join(_settings(asked, runs)),
        table(columns, [*texts, *columns, *[REMOVED] * bool(recipe.texts)]),
    ]
    if known.intersection(recipe.tasks):
        questions = f"first {asked.limit} questions of each task" if asked.limit else "all questions"
        parts += [f"Zero-shot accuracy in percent, {questions}.", table(recipe.tasks, recipe.tasks)]
    parts.append("\n".join(f"- {note}" for note in [*_left_out(recipe, asked, runs), *recipe.notes]))
    return "\n\n".join(parts) + "\n"


def _lines(recipe: Recipe, model: str, runs: list[Run], most: int | None) -> Iterator[Run]:
    """What was published and measured, as `pages` reads it: a line a run, labelled with the axes of its place."""
    measured = _measured(recipe, runs)
    for place in recipe.places():
        at = replace(place, samples=min(place.samples, most or place.samples))
        labels = {axis: str(getattr(place, axis)) for axis in AXES}
        if at != place:
            labels["samples"] += f" (here {at.samples})"
        if place.row == DENSE:  # the one run stands for every place
            labels |= dict.fromkeys(("ratio", "recovery", "samples"), "")
        if place in recipe.published:
            figures = recipe.published[place]
            line = {"model": f"{recipe.model}, paper", "seed": None, **labels}
            for name, figure in figures.items():
                mean, deviation = figure if isinstance(figure, list) else (figure, None)
                line |= {name: mean, f"{name}_deviation": deviation}
            yield line
            if recipe.rows[place.row].missing:
                words = dict.fromkeys((*runs[0]["settings"]["texts"], *recipe.columns), "not run here")
                yield {"model": model, "seed": None, **labels, **words}
        for seed, figures in measured.get(at, {}).items():
            yield {"model": model, "seed": seed, **labels, **figures}


def _measured(recipe: Recipe, runs: Iterable[Run]) -> dict[Place, dict[int, Mapping[str, Any]]]:
    """Place → seed → figures, and the share removed; Diff is that of each seed."""
    found: dict[Place, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        place = Place(**{axis: run[axis] for axis in AXES})
        found.setdefault(place, {})[run["seed"]] = run["figures"] | {REMOVED: f"{100 * run['removed']:.1f} %"}
    if len(recipe.dtypes) > 1:
        one, two = recipe.dtypes
        for place in [place for place in found if place.dtype == one]:
            found[replace(place, dtype=DIFF)] = {
                seed: {name: abs(value - other[name]) for name, value in figures.items() if name != REMOVED}
                for seed, figures in found[place].items()
                if (other := found.get(replace(place, dtype=two), {}).get(seed))
            }
    return found


def _settings(asked: Namespace, runs: list[Run]) -> list[str]:
    """What the measured figures were made with."""
    segments = f"the first {asked.max_segments}" if asked.max_segments else "all"
    measured = f"; perplexity over {segments} 128-token segments." if asked.text else "."
    found = [f"Calibrated on {runs[0]['settings']['calibration']}{measured}"]
    for name, s in {run["recovery"]: run["settings"] for run in runs if "recovery" in run["settings"]}.items():
        length = f"{s['max_steps']} steps" if s["max_steps"] else f"{s['epochs']} epochs"
        found.append(f"{name.capitalize()}: {s['recovery']}, {length}, learning rate {s['learning_rate']:.1g}.")
    return found


def _left_out(recipe: Recipe, asked: Namespace, runs: list[Run]) -> list[str]:
    """What the table asks and was not given, or is not in this package."""
    texts, tuned = runs[0]["settings"]["texts"], {run["recovery"] for run in runs}
    found = [f"perplexity on {name} (no --text {name}=FILE)" for name in recipe.texts if name not in texts]
    if recipe.tasks and AVERAGE not in runs[0]["figures"]:
        found.append("zero-shot tasks (no --task-path)")
    found += [
        f"what is {name} (no --{records.replace('_', '-')})"
        for name, records in RECOVERIES.items()
        if records and name in recipe.recoveries and name not in tuned
    ]
    found += [f"{label} ({row.missing})" for label, row in recipe.rows.items() if row.missing]
    return [f"Left out here: {'; '.join(found)}."] if found else []
