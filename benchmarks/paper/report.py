"""A recipe's runs as markdown: the published figures with the paper's model, the measured ones with theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pages import Table
from recipe import AXES, DENSE, DIFF, RECOVERIES

if TYPE_CHECKING:
    from run import Bench

REMOVED = "removed"  # share of the parameters
Run = dict[str, Any]


def report(bench: Bench, runs: list[Run]) -> str:
    """The table: what the paper published left, what was measured right; then what was left out, and the notes."""
    recipe, asked = bench.recipe, bench.asked
    drawn = "1 seed" if asked.seeds == 1 else f"{asked.seeds} seeds, mean ± standard deviation"
    axes = [axis for axis in AXES if axis == "row" or len({getattr(place, axis) for place in recipe.places()}) > 1]
    lines = list(_lines(bench, runs))

    def table(published: Iterable[str], measured: Iterable[str]) -> str:
        shown = [(f"{recipe.model}, paper", name) for name in published]
        shown += [(bench.model, name) for name in measured]
        columns = [{"of": of, "show": name, "as": f"{of}: {name}"} for of, name in shown]
        asked = {"lines": axes, "across": "model", "dense": True, "best": False, "columns": columns}
        return Table(lines, asked).markdown()

    published = [name for name in recipe.columns if name not in recipe.tasks]
    measured = [*(bench.texts if recipe.texts else ()), *(published[-1:] if bench.tasks else ())]
    parts = [
        f"### {recipe.name.replace('table', 'Table ')}: {recipe.title}",
        f"Left the paper's figures, of {recipe.model}; right those measured on {bench.model}, {drawn}.\n"
        + "\n".join(_settings(bench, runs)),
        table(published, [*measured, REMOVED] if recipe.texts else measured),
    ]
    if bench.tasks:
        questions = f"first {asked.limit} questions of each task" if asked.limit else "all questions"
        parts += [f"Zero-shot accuracy in percent, {questions}.", table(recipe.tasks, recipe.tasks)]
    parts.append("\n".join(f"- {note}" for note in [*_left_out(bench), *recipe.notes]))
    return "\n\n".join(parts) + "\n"


def _lines(bench: Bench, runs: list[Run]) -> Iterator[Run]:
    """What was published and measured, as `pages` reads it: a line a run, labelled with the axes of its place."""
    recipe, found = bench.recipe, {}
    for run in runs:
        figures = {name: run[key] for name, key in bench.keys.items()} | run.get("tasks", {})
        figures[REMOVED] = f"{100 * run['removed']:.1f} %"
        found.setdefault((run["protocol"], run["row"]), {})[run["seed"]] = figures
    for place in recipe.places():
        at = bench.here(place)
        labels = {axis: str(getattr(place, axis)) for axis in AXES}
        labels["samples"] += "" if at == place else f" (here {at.samples})"
        if place.row == DENSE:  # the one run stands for every place
            labels |= dict.fromkeys(("ratio", "recovery", "samples"), "")
        if place in recipe.published:
            line: Run = {"model": f"{recipe.model}, paper", "seed": None, **labels}
            for name, figure in recipe.published[place].items():
                mean, deviation = figure if isinstance(figure, list) else (figure, None)
                line |= {name: mean, f"{name}_deviation": deviation}
            yield line
            if recipe.rows[place.row].missing:
                words = dict.fromkeys((*bench.texts, *recipe.columns), "not run here")
                yield {"model": bench.model, "seed": None, **labels, **words}
        if place.dtype == DIFF:
            one, two = (found.get((bench.protocol(replace(at, dtype=dtype)), place.row), {}) for dtype in recipe.dtypes)
            measured = {
                seed: {name: abs(one[seed][name] - two[seed][name]) for name in one[seed] if name != REMOVED}
                for seed in one.keys() & two.keys()
            }
        else:
            measured = found.get((bench.protocol(at), place.row), {})
        for seed, figures in measured.items():
            yield {"model": bench.model, "seed": seed, **labels, **figures}


def _settings(bench: Bench, runs: list[Run]) -> list[str]:
    """What the measured figures were made with."""
    segments = f"the first {bench.asked.max_segments}" if bench.asked.max_segments else "all"
    measured = f"; perplexity over {segments} 128-token segments." if bench.texts else "."
    found = [f"Calibrated on {runs[0]['calibration']}{measured}"]
    for name, run in {run["protocol"].partition(",")[0]: run for run in runs if "set" in run}.items():
        length = f"{run['max_steps']} steps" if "max_steps" in run else f"{run['epochs']} epochs"
        found.append(f"{name.capitalize()}: {run['set']}, {length}, learning rate {run['learning_rate']:.1g}.")
    return found


def _left_out(bench: Bench) -> list[str]:
    """What the table asks and was not given, or is not in this package."""
    recipe, tuned = bench.recipe, {place.recovery for place in bench.places()}
    found = [f"perplexity on {name} (no --text {name}=FILE)" for name in recipe.texts if name not in bench.texts]
    if recipe.tasks and not bench.tasks:
        found.append("zero-shot tasks (no --task-path)")
    found += [
        f"what is {name} (no --{RECOVERIES[name].replace('_', '-')})" for name in recipe.recoveries if name not in tuned
    ]
    found += [f"{label} ({row.missing})" for label, row in recipe.rows.items() if row.missing]
    return [f"Left out here: {'; '.join(found)}."] if found else []
