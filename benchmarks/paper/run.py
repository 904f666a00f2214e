"""Runs a table of the paper on a model; prints it beside the published figures, and keeps every run.

    python benchmarks/paper/run.py TABLE MODEL --calibration FILE --text NAME=FILE [--text NAME=FILE …]
        [--recovery FILE [--larger-recovery FILE]] [--task-path FOLDER | --tasks] [--limit N] [--seeds N]
        [--max-steps N] [--max-segments N] [--max-samples N] [--lr-scale X] [--micro-batch N] [--output FOLDER]

TABLE: table1, table2, table3, table6 … table11 (table4, table5 are parts of table9, table10). The paper's columns are
the texts WikiText2 and PTB; a model that knows others is measured on those. What is not given is left out, and said so.
The rows of the published code (`released`) hold more than 8 bytes for every parameter beside the model.
FOLDER takes TABLE.jsonl (every run) and TABLE-MODEL.md; runs that its files hold already are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # of the modules that studies share

from measures import prune
from recipe import AVERAGE, DENSE, DIFF, RECOVERIES, TABLES, Place, Recipe, read_recipe
from report import Run, report
from study import Parser, commit, keep, quiet, read_runs
from transformers import PreTrainedModel

from optimum_moreau import MoreauPruner, perplexity
from optimum_moreau.data.sources import model_reference, read_documents, source_name
from optimum_moreau.errors import ConfigError, DataError, MoreauError
from optimum_moreau.evaluation.zero_shot import zero_shot
from optimum_moreau.loading import load_config, load_model, load_tokenizer
from optimum_moreau.registry import suggestion


def whole(word: str) -> int:
    """A whole number ≥ 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number ≥ 1")
    return int(word)


def arguments_parser() -> Parser:
    """The options."""
    parser = Parser(prog="run.py", description="A table of the paper, run on a model.")
    parser.add_argument("table", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("--calibration", metavar="FILE", required=True, help="text to score on (the paper: BookCorpus)")
    parser.add_argument("--text", metavar="NAME=FILE", action="append", default=[], help="text of a perplexity column")
    parser.add_argument("--recovery", metavar="FILE", help="records to tune on (the paper: Alpaca)")
    parser.add_argument("--larger-recovery", metavar="FILE", help="the larger set of tables 6, 11 (the paper: LaMini)")
    parser.add_argument("--tasks", action="store_true", help="zero-shot tasks, lm-eval's own, which it downloads")
    parser.add_argument("--task-path", metavar="FOLDER", type=Path, help="zero-shot tasks, from files")
    for option, default, what in (
        ("--limit", None, "only the first N questions of each task"),
        ("--seeds", 3, "of windows, noise and tuning (default: 3)"),
        ("--max-steps", None, "of the tuning, instead of the recipe's epochs"),
        ("--max-segments", None, "only the first N segments of each text"),
        ("--max-samples", None, "at most N calibration windows (table7)"),
        ("--micro-batch", 4, "sequences per forward pass of tuning"),
    ):
        parser.add_argument(option, metavar="N", type=whole, default=default, help=what)
    parser.add_argument("--lr-scale", metavar="X", type=float, default=1.0, help="times the recipe's learning rates")
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path("paper-results"))
    return parser


class Bench:
    """A table and what it is run on; tokenizer, texts and tasks are read once, and each run loads the model anew.

    Raises:
        ConfigError: a text without a name, or nothing to measure.
        DataError: a task that has no file.
    """

    def __init__(self, recipe: Recipe, asked: argparse.Namespace) -> None:
        for text in asked.text:
            if not all(text.partition("=")):
                raise ConfigError(f"--text: '{text}' is not NAME=FILE, e.g. WikiText2=wikitext2.test.txt")
        self.recipe, self.asked = recipe, asked
        self.tasks = task_names(recipe, asked.task_path) if asked.tasks or asked.task_path else {}
        if not asked.text and not self.tasks:
            raise ConfigError(f"{recipe.name}: nothing to measure; give --text NAME=FILE, or --task-path FOLDER")
        load_config(asked.model)  # whether there is a model at all
        self.tokenizer = load_tokenizer(asked.model)
        self.sources = dict(text.split("=", 1) for text in asked.text)
        self.texts = {name: read_documents(text, tokenizer=self.tokenizer) for name, text in self.sources.items()}
        self.scores: dict[str, dict] = {}  # dtype → what was scored

    def places(self) -> list[Place]:
        """The places of the table that can be filled; calibration sizes above the most are that size."""
        found = []
        for place in self.recipe.places():
            records, most = RECOVERIES[place.recovery], self.asked.max_samples or place.samples
            given = records is None or getattr(self.asked, records)
            if given and place.dtype != DIFF and not self.recipe.rows[place.row].missing:
                found.append(replace(place, samples=min(place.samples, most)))
        return list(dict.fromkeys(found))

    def settings(self, recovery: str) -> Run:
        """What figures depend on beside place and seed, for the record."""
        asked = self.asked
        found: Run = {
            "texts": {name: source_name(source) for name, source in self.sources.items()},
            "calibration": source_name(asked.calibration),
            "max_segments": asked.max_segments,
        }
        if self.tasks:
            found |= {"tasks": True, "limit": asked.limit}
        if (records := RECOVERIES[recovery]) is not None:
            tuning = self.recipe.recovery(recovery)
            found |= {
                "recovery": source_name(getattr(asked, records)),
                "epochs": tuning.epochs,
                "max_steps": asked.max_steps,
                "learning_rate": asked.lr_scale * tuning.learning_rate,
            }
        return found

    def runs(self, done: Mapping[str, Run]) -> Iterator[Run]:
        """Yields a run for every place and seed; one that was done before, for this table or another, as it was found.

        Raises:
            MoreauError: of the kind that names the mistake (errors.py).
        """
        model, stamp = model_reference(self.asked.model) or self.asked.model, commit()
        for place in self.places():
            for seed in range(1 if place.row == DENSE else self.asked.seeds):
                run = {"model": model, **vars(place), "seed": seed}
                run["pruning"] = self.recipe.fields(place.row, place.ratio)
                run["settings"] = self.settings(place.recovery)
                found = done.get(identity(run)) or {**self.filled(place, seed), "commit": stamp}
                yield {**run, **{key: value for key, value in found.items() if key not in run}}

    def filled(self, place: Place, seed: int) -> Run:
        """The figures of a place, the share of the parameters removed, and the seconds it took."""
        model, removed, scoring = load_model(self.asked.model, dtype=place.dtype), 0.0, 0.0
        start = time.perf_counter()
        if place.row != DENSE:
            config = self.recipe.config(place.row, place.ratio, place.samples, seed)
            pruner, scores = MoreauPruner(config, tokenizer=self.tokenizer), self.scores.setdefault(place.dtype, {})
            result, scoring = prune(pruner, model, self.asked.calibration, scores)
            removed, start = result.summary.ratio_achieved, time.perf_counter()
            if (records := RECOVERIES[place.recovery]) is not None:
                self.tune(pruner, model, place.recovery, getattr(self.asked, records), seed)
        figures = self.figures(model)
        seconds = {"scoring": round(scoring, 2), "rest": round(time.perf_counter() - start, 2)}
        return {"figures": figures, "removed": removed, "seconds": seconds}

    def tune(self, pruner: MoreauPruner, model: PreTrainedModel, recovery: str, records: str, seed: int) -> None:
        """In place: as the recipe says, in sequences that the model has positions for."""
        changes = {"max_steps": self.asked.max_steps} if self.asked.max_steps else {}
        config = self.recipe.recovery(recovery, seed=seed, micro_batch_size=self.asked.micro_batch, **changes)
        positions = getattr(model.config, "max_position_embeddings", None) or config.sequence_length
        length, rate = min(config.sequence_length, positions), self.asked.lr_scale * config.learning_rate
        pruner.recover(records, replace(config, learning_rate=rate, sequence_length=length))

    def figures(self, model: PreTrainedModel) -> dict[str, float]:
        """Perplexities, and accuracies in percent."""
        asked, most = self.asked, self.asked.max_segments
        found = {
            name: perplexity(model, self.tokenizer, text, max_segments=most).perplexity
            for name, text in self.texts.items()
        }
        if self.tasks:
            names = tuple(self.tasks.values())
            accuracy = zero_shot(model, self.tokenizer, names, task_path=asked.task_path, limit=asked.limit)
            found |= {task: 100 * one.value for task, one in zip(self.tasks, accuracy.tasks, strict=True)}
            found[AVERAGE] = 100 * accuracy.average
        return found


def identity(run: Run) -> str:
    """Equal for runs that give the same figures, whatever row of whatever table they fill."""
    decides = ("model", "samples", "dtype", "recovery", "seed", "pruning", "settings")
    return json.dumps([run[key] for key in decides], sort_keys=True)


def task_names(recipe: Recipe, folder: Path | None) -> dict[str, str]:
    """Column → task: a file of the folder, of the task's name or a piece of it (`hellaswag_2k`); or lm-eval's own."""
    if folder is None:
        return {task: task for task in recipe.tasks}
    files = {file.stem for file in folder.glob("*") if file.suffix in (".yaml", ".jsonl")}
    found = {}
    for task in recipe.tasks:
        fitting = [task] if task in files else sorted(name for name in files if name.startswith(f"{task}_"))
        if not fitting:
            raise DataError(f"{folder}: holds no task '{task}' (.yaml or .jsonl).{suggestion(task, files)}")
        found[task] = fitting[0]
    return found


def main(words: list[str] | None = None) -> None:
    """Measures, writes and prints one table."""
    asked = (parser := arguments_parser()).parse_args(words)
    quiet()
    folder: Path = asked.output
    try:
        bench = Bench(recipe := read_recipe(asked.table), asked)
        file = folder / f"{recipe.name}.jsonl"
        kept, done, runs = read_runs(file, identity), {}, []
        for other in folder.glob("table*.jsonl"):
            done |= read_runs(other, identity)
        for run in bench.runs(done | kept):
            runs.append(run)
            if run != kept.get(identity(run)):
                keep(file, run)
            print(run["ratio"], run["recovery"], run["row"], run["dtype"], run["seed"], run["figures"], file=sys.stderr)
    except MoreauError as error:
        parser.error(str(error))
    text = report(recipe, asked, runs)
    (folder / f"{recipe.name}-{runs[0]['model']}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
