"""Runs a table of the paper on a model; prints it beside the published figures, and keeps every run.

    python benchmarks/paper/run.py TABLE MODEL --calibration FILE --text NAME=FILE [--text NAME=FILE …]
        [--recovery FILE [--larger-recovery FILE]] [--task-path FOLDER | --tasks] [--limit N] [--seeds N]
        [--max-steps N] [--max-segments N] [--max-samples N] [--lr-scale X] [--micro-batch N] [--output FOLDER]

TABLE: table1, table2, table3, table6 … table11 (table4, table5 are parts of table9, table10). The paper's columns are
the texts WikiText2 and PTB; a model that knows others is measured on those. What is not given is left out, and said so.
The rows of the published code (`released`) hold more than 8 bytes for every parameter beside the model.
FOLDER takes TABLE.json (every run) and TABLE-MODEL.md; runs that its files hold already are not made again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import NoReturn

from measure import Run, Subject, measure
from recipe import TABLES, read_recipe
from report import report
from transformers.utils import logging as transformers_logging

from optimum_moreau.errors import ConfigError, MoreauError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


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
    parser.add_argument("--limit", metavar="N", type=whole, help="only the first N questions of each task")
    parser.add_argument("--seeds", metavar="N", type=whole, default=3, help="of windows, noise and tuning (default: 3)")
    parser.add_argument("--max-steps", metavar="N", type=whole, help="of the tuning, instead of the recipe's epochs")
    parser.add_argument("--max-segments", metavar="N", type=whole, help="only the first N segments of each text")
    parser.add_argument("--max-samples", metavar="N", type=whole, help="at most N calibration windows (table7)")
    parser.add_argument("--lr-scale", metavar="X", type=float, default=1.0, help="times the recipe's learning rates")
    parser.add_argument(
        "--micro-batch", metavar="N", type=whole, default=4, help="sequences per forward pass of tuning"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path("paper-results"))
    return parser


def subject_of(asked: argparse.Namespace) -> Subject:
    """What was asked for.

    Raises:
        ConfigError: a text without a name.
    """
    texts = dict(text.partition("=")[::2] for text in asked.text)
    for text in asked.text:
        if not all(text.partition("=")):
            raise ConfigError(f"--text: '{text}' is not NAME=FILE, e.g. WikiText2=wikitext2.test.txt")
    recoveries = {"recovery": asked.recovery, "larger recovery": asked.larger_recovery}
    tuning = {"micro_batch_size": asked.micro_batch, "max_steps": asked.max_steps}
    same = ("model", "calibration", "task_path", "limit", "max_segments", "max_samples", "lr_scale")
    return Subject(
        **{name: getattr(asked, name) for name in same},
        texts=texts,
        recoveries={name: source for name, source in recoveries.items() if source},
        tasks=asked.tasks or asked.task_path is not None,
        tuning={name: value for name, value in tuning.items() if value is not None},
    )


def main(words: list[str] | None = None) -> None:
    """Measures, writes and prints one table."""
    parser = arguments_parser()
    arguments = parser.parse_args(words)
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    folder: Path = arguments.output
    try:
        recipe, subject = read_recipe(arguments.table), subject_of(arguments)
        if not subject.texts and not (recipe.tasks and subject.tasks):
            raise ConfigError(f"{recipe.name}: nothing to measure; give --text NAME=FILE, or --task-path FOLDER")
        folder.mkdir(parents=True, exist_ok=True)
        done = [run for file in folder.glob("table*.json") for run in json.loads(file.read_text())["runs"]]
        file = folder / f"{recipe.name}.json"
        kept = json.loads(file.read_text())["runs"] if file.is_file() else []
        runs: list[Run] = []
        for run in measure(recipe, subject, arguments.seeds, done):
            runs.append(run)
            here = [run for run in kept if run not in runs]
            write(file, recipe.name, recipe.model, [*here, *runs])
            print(run["ratio"], run["recovery"], run["row"], run["dtype"], run["seed"], run["figures"], file=sys.stderr)
    except MoreauError as error:
        parser.error(str(error))
    text = report(recipe, subject, runs, arguments.seeds)
    (folder / f"{recipe.name}-{subject.name}.md").write_text(text, encoding="utf-8")
    print(text)


def write(file: Path, table: str, model: str, runs: list[Run]) -> None:
    """Writes the runs, one a line; whole or not at all, so that a run that is killed leaves what it had."""
    lines = ",\n ".join(json.dumps(run, ensure_ascii=False) for run in runs)
    new = file.with_suffix(".new")
    new.write_text(
        f'{{"table": {json.dumps(table)}, "paper_model": {json.dumps(model)}, "runs": [\n {lines}\n]}}\n',
        encoding="utf-8",
    )
    new.replace(file)


if __name__ == "__main__":
    main()
