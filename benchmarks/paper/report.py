"""A recipe's runs as markdown: the published figures with the paper's model, the measured ones with theirs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace

from measure import Run, Subject, places_to_run
from recipe import AXES, DENSE, DIFF, RECOVERIES, Place, Recipe

REMOVED = "removed"  # share of the parameters


def report(recipe: Recipe, subject: Subject, runs: list[Run], seeds: int) -> str:
    """The table: what the paper published left, what was measured right; then what was left out, and the notes.

    Args:
        recipe: of the table.
        subject: what it was run on.
        runs: of that subject, all seeds.
        seeds: how many.
    """
    measured, texts = _measured(recipe, runs), [column for column in recipe.columns if column not in recipe.tasks]
    drawn = "1 seed" if seeds == 1 else f"{seeds} seeds, mean ± standard deviation"
    axes = [axis for axis in AXES if axis == "row" or len({getattr(place, axis) for place in recipe.places()}) > 1]
    lines = [
        f"### {recipe.name.replace('table', 'Table ')}: {recipe.title}",
        "",
        f"Left the paper's figures, of {recipe.model}; right those measured on {subject.name}, {drawn}.",
        *_settings(subject, runs),
        "",
        *_table(recipe, subject, measured, axes, texts, with_texts=bool(recipe.texts)),
    ]
    if any(task in figures for figures in measured.values() for task in recipe.tasks):
        questions = f"first {subject.limit} questions of each task" if subject.limit else "all questions"
        lines += ["", f"Zero-shot accuracy in percent, {questions}.", ""]
        lines += _table(recipe, subject, measured, axes, [*recipe.tasks], with_texts=False)
    lines += ["", *(f"- {note}" for note in [*_left_out(recipe, subject), *recipe.notes])]
    return "\n".join(lines) + "\n"


def _settings(subject: Subject, runs: list[Run]) -> list[str]:
    """What the measured figures were made with."""
    text = next((run["settings"]["calibration"] for run in runs), "")
    segments = f"the first {subject.max_segments}" if subject.max_segments else "all"
    found = [f"Calibrated on {text}" + (f"; perplexity over {segments} 128-token segments." if subject.texts else ".")]
    for name in {run["recovery"]: None for run in runs if "recovery" in run["settings"]}:
        s = next(run["settings"] for run in runs if run["recovery"] == name)
        length = f"{s['max_steps']} steps" if s["max_steps"] else f"{s['epochs']} epochs"
        name = name[0].upper() + name[1:]
        found.append(f"{name}: {s['recovery']}, {length}, learning rate {s['learning_rate']:.1g}.")
    return found


def _measured(recipe: Recipe, runs: Iterable[Run]) -> dict[Place, dict[str, list[float]]]:
    """Place → column → figures of all seeds; Diff is that of each seed."""
    by_seed: dict[Place, dict[int, Mapping[str, float]]] = {}
    for run in runs:
        place = Place(**{axis: run[axis] for axis in AXES})
        by_seed.setdefault(place, {})[run["seed"]] = run["figures"] | {REMOVED: run["removed"]}
    if len(recipe.dtypes) > 1:
        one, two = recipe.dtypes
        for place in [place for place in by_seed if place.dtype == one]:
            other = by_seed.get(replace(place, dtype=two), {})
            by_seed[replace(place, dtype=DIFF)] = {
                seed: {name: abs(value - other[seed][name]) for name, value in figures.items()}
                for seed, figures in by_seed[place].items()
                if seed in other
            }
    return {
        place: {name: [figures[name] for figures in seeds.values()] for name in next(iter(seeds.values()), {})}
        for place, seeds in by_seed.items()
    }


def _table(
    recipe: Recipe,
    subject: Subject,
    measured: Mapping[Place, Mapping[str, list[float]]],
    axes: list[str],
    columns: list[str],
    *,
    with_texts: bool,
) -> list[str]:
    """Published columns, then the measured ones of the same kind: texts under their own names, tasks under theirs."""
    found = {name for figures in measured.values() for name in figures}
    here = [name for name in dict.fromkeys([*(subject.texts if with_texts else ()), *columns]) if name in found]
    shares = {place: figures[REMOVED] for place, figures in measured.items()} if with_texts else {}
    head = [*axes, *(f"{recipe.model}, paper: {name}" for name in columns), *(f"{subject.name}: {n}" for n in here)]
    head += [f"{subject.name}: {REMOVED}"] * bool(shares)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(axes)}{'---:|' * (len(head) - len(axes))}"]
    for place in recipe.places():
        at = replace(place, samples=min(place.samples, subject.max_samples or place.samples))
        figures, published = measured.get(at, {}), recipe.published.get(place, {})
        missing = "not run here" if recipe.rows[place.row].missing else ""
        if not figures and not published:
            continue
        cells = [_axis(place, at, axis) for axis in axes]
        cells += [_words(published[name]) if name in published else "" for name in columns]
        cells += [_spread(figures[name]) if name in figures else missing for name in here]
        if shares:
            cells.append(f"{100 * statistics.mean(shares[at]):.1f} %" if at in shares and at.dtype != DIFF else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _axis(place: Place, at: Place, axis: str) -> str:
    """The label of an axis; of the dense model only its row and dtype, and a size that was lowered with the one run."""
    if place.row == DENSE and axis not in ("row", "dtype"):
        return ""
    if axis == "samples" and at.samples != place.samples:
        return f"{place.samples} (here {at.samples})"
    return str(getattr(place, axis))


def _spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    mean = statistics.mean(values)
    return _words([mean, statistics.stdev(values)] if len(values) > 1 else mean)


def _words(value: float | list[float]) -> str:
    return f"{value[0]:.2f} ± {value[1]:.2f}" if isinstance(value, list) else f"{value:.2f}"


def _left_out(recipe: Recipe, subject: Subject) -> list[str]:
    """What the table asks and was not given, or is not in this package."""
    found = [f"perplexity on {name} (no --text {name}=FILE)" for name in recipe.texts if name not in subject.texts]
    if recipe.tasks and not subject.tasks:
        found.append("zero-shot tasks (no --task-path)")
    run = {place.recovery for place in places_to_run(recipe, subject)}
    for name in recipe.recoveries:
        if name not in run:
            found.append(f"what is {name} (no --{RECOVERIES[name].replace(' ', '-')})")  # type: ignore[union-attr]
    found += [f"{label} ({row.missing})" for label, row in recipe.rows.items() if row.missing]
    return [f"Left out here: {'; '.join(found)}."] if found else []
