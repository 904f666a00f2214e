"""Runs a table of the paper on a model; prints it beside the published figures, and keeps every run.

    python benchmarks/paper/run.py TABLE MODEL --calibration FILE --text NAME=FILE [--text NAME=FILE …]
        [--recovery FILE [--larger-recovery FILE]] [--task-path FOLDER | --tasks] [--seeds N] [--output FOLDER] …

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
        self.model, self.tokenizer = model_reference(asked.model) or asked.model, load_tokenizer(asked.model)
        self.sources = dict(text.split("=", 1) for text in asked.text)
        self.texts = {name: read_documents(text, tokenizer=self.tokenizer) for name, text in self.sources.items()}
        self.keys = {name: name.lower() if i else "perplexity" for i, name in enumerate(self.texts)}  # in a line
        self.scores: dict[str, dict] = {}  # dtype → what was scored

    def here(self, place: Place) -> Place:
        """With as many calibration windows as there may be."""
        return replace(place, samples=min(place.samples, self.asked.max_samples or place.samples))

    def places(self) -> list[Place]:
        """The places of the table that can be filled."""
        given = {None, *(records for records in RECOVERIES.values() if records and getattr(self.asked, records))}
        found = [place for place in self.recipe.places() if RECOVERIES[place.recovery] in given]
        found = [place for place in found if place.dtype != DIFF and not self.recipe.rows[place.row].missing]
        return list(dict.fromkeys(map(self.here, found)))

    def protocol(self, place: Place) -> str:
        """What was done at a place, beside its row; of the dense model only what it was asked."""
        asked = f"first {self.asked.limit} questions" if self.asked.limit else "all questions"
        questions = [asked] if self.tasks else []
        if place.row == DENSE and not questions:
            return ""
        hidden = "targets" in self.recipe.protocol
        parts = [f"{place.ratio} hidden" if hidden else place.recovery]
        parts += [place.dtype] * (place.dtype != "auto") + [f"{place.samples} samples"] * (place.samples != 10)
        return ", ".join(parts + questions)

    def described(self, place: Place, seed: int) -> Run:
        """What the figures of a run depend on: alike for a row that several tables have."""
        asked, texts = self.asked, {name: source_name(source) for name, source in self.sources.items()}
        run = {"model": self.model, "protocol": self.protocol(place), "row": place.row, "seed": seed}
        run |= {"calibration": source_name(asked.calibration), "texts": texts}
        run |= {"segments": asked.max_segments} if texts else {}
        if (records := RECOVERIES[place.recovery]) is not None:
            tuning = self.recipe.recovery(place.recovery)
            run |= {"set": source_name(getattr(asked, records)), "epochs": tuning.epochs}
            run |= {"learning_rate": asked.lr_scale * tuning.learning_rate}
            run |= {"max_steps": asked.max_steps} if asked.max_steps else {}
        return run

    def runs(self, done: Mapping[str, Run]) -> Iterator[Run]:
        """Yields a run for every place and seed; one that was done before, for this table or another, as it was found.

        Raises:
            MoreauError: of the kind that names the mistake (errors.py).
        """
        stamp = commit()
        for place in self.places():
            for seed in range(1 if place.row == DENSE else self.asked.seeds):
                run = self.described(place, seed)
                found = done.get(identity(run)) or {**run, **self.filled(place, seed), "commit": stamp}
                yield {"table": self.recipe.name} | {key: found[key] for key in found if key != "table"}

    def filled(self, place: Place, seed: int) -> Run:
        """The figures of a place, the share of the parameters removed, and the seconds it took."""
        model, removed, seconds = load_model(self.asked.model, dtype=place.dtype), 0.0, 0.0
        start = time.perf_counter()
        if place.row != DENSE:
            config = self.recipe.config(place.row, place.ratio, place.samples, seed)
            pruner, scores = MoreauPruner(config, tokenizer=self.tokenizer), self.scores.setdefault(place.dtype, {})
            result, seconds = prune(pruner, model, self.asked.calibration, scores)
            removed, start = result.summary.ratio_achieved, time.perf_counter()
            if RECOVERIES[place.recovery] is not None:
                self.tune(pruner, model, place.recovery, seed)
        figures, rest = self.figures(model), round(time.perf_counter() - start, 2)
        return {**figures, "seconds": round(seconds, 2), "rest": rest, "removed": round(removed, 4)}

    def tune(self, pruner: MoreauPruner, model: PreTrainedModel, recovery: str, seed: int) -> None:
        """In place: as the recipe says, in sequences that the model has positions for."""
        changes = {"max_steps": self.asked.max_steps} if self.asked.max_steps else {}
        config = self.recipe.recovery(recovery, seed=seed, micro_batch_size=self.asked.micro_batch, **changes)
        positions = getattr(model.config, "max_position_embeddings", None) or config.sequence_length
        length, rate = min(config.sequence_length, positions), self.asked.lr_scale * config.learning_rate
        records = getattr(self.asked, RECOVERIES[recovery])
        pruner.recover(records, replace(config, learning_rate=rate, sequence_length=length))

    def figures(self, model: PreTrainedModel) -> Run:
        """Perplexities, and accuracies in percent."""
        asked, found = self.asked, {}
        for name, text in self.texts.items():
            value = perplexity(model, self.tokenizer, text, max_segments=asked.max_segments, bos="paper").perplexity
            found[self.keys[name]] = round(value, 4)
        if not self.tasks:
            return found
        names = tuple(self.tasks.values())
        accuracy = zero_shot(model, self.tokenizer, names, task_path=asked.task_path, limit=asked.limit)
        percents = (round(100 * value, 4) for value in (*(one.value for one in accuracy.tasks), accuracy.average))
        return {**found, "tasks": dict(zip((*self.tasks, AVERAGE), percents, strict=True))}


def identity(run: Run) -> str:
    """Equal for runs that give the same figures, whatever table they fill."""
    names = ("model", "protocol", "row", "seed", "calibration", "texts")
    tuned = ("segments", "set", "epochs", "learning_rate", "max_steps")
    return json.dumps([run[name] for name in names] + [run.get(name) for name in tuned])


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
        bench = Bench(read_recipe(asked.table), asked)
        file = folder / f"{bench.recipe.name}.jsonl"
        kept, done, runs = read_runs(file, identity), {}, []
        for other in folder.glob("table*.jsonl"):
            done |= read_runs(other, identity)
        for run in bench.runs(done | kept):
            runs.append(run)
            if run != kept.get(identity(run)):
                keep(file, run)
            print(json.dumps(run, ensure_ascii=False), file=sys.stderr)
    except MoreauError as error:
        parser.error(str(error))
    text = report(bench, runs)
    (folder / f"{bench.recipe.name}-{bench.model}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
