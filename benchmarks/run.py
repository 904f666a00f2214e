"""Runs a study: prunes every model by every protocol and row with every seed, measures, and keeps each run.

    python benchmarks/run.py benchmarks/studies/quality.yaml [--shared ../shared] [--models NAME …] [--protocols NAME …]
        [--rows NAME …] [--seeds N] [--segments N] [--output results/data/quality.jsonl]

Each run is one line of JSON, written as soon as it is there; what the output holds already is not repeated. A run is
known by its model, protocol, row and seed: take another output for other --segments. Its seconds are of scoring,
compensation and cut. Runs that differ only in what comes after scoring share their scores, made once, and each counts
the seconds of making them. `removed` is the share of the parameters that went.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from measures import MEASURES, Pruned
from study import DENSE, SHARED, Study, Subject, check_names, read_study, subjects
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, perplexity
from optimum_moreau.config.settings import deciding
from optimum_moreau.errors import DataError, MoreauError
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.run.cutting import PruningResult

ROOT = Path(__file__).parents[1]
KEY = ("model", "protocol", "row", "seed")
Run = dict[str, Any]


def prune(pruner: MoreauPruner, model: PreTrainedModel, text: list[str], made: dict) -> tuple[PruningResult, float]:
    """In place, from scores that another run made, if they serve; returns what was done, and all its seconds."""
    config, scores, before, start = pruner.config.resolve(model.config), None, 0.0, time.perf_counter()
    if config.rounds == 1 and not (config.masks and config.criterion.by_layer):  # else scored as the model changes
        decides = deciding(config, "elements", "scores", "scope")
        if config.masks:
            del decides["mask"]
        else:
            decides["budget"] = [config.budget.name if config.budget.measured else "", config.budget.protect_outliers]
        key = json.dumps(decides, default=str)
        if key not in made:
            if config.masks:
                made.clear()  # the scores of single weights are as large as the model
            found = pruner.element_scores(model, text) if config.masks else pruner.plan(model, text)[1]
            made[key] = found, time.perf_counter() - start
            start = time.perf_counter()
        scores, before = made[key]
    return pruner.prune(model, text, scores=scores), before + time.perf_counter() - start


def measure(study: Study, subject: Subject, todo: list[tuple], known: dict[tuple, Run]) -> Iterator[Run]:
    """Yields the runs of one model, each as soon as it is there."""
    tokenizer, (calibration, evaluation) = load_tokenizer(str(subject.folder)), subject.documents()
    made: dict[str, tuple[Any, float]] = {}
    for protocol, row, seed in tqdm(todo, desc=subject.name):
        model = load_model(str(subject.folder), device="cpu")
        run: Run = {"model": subject.name, "protocol": protocol, "row": row, "seed": seed}
        if row == DENSE:
            value = perplexity(model, tokenizer, evaluation, max_segments=study.segments).perplexity
            yield {**run, "perplexity": round(value, 4), "seconds": 0.0, "removed": 0.0}
            continue
        pruner = MoreauPruner(study.config(protocol, row, seed, model.config.num_hidden_layers), tokenizer=tokenizer)
        result, seconds = prune(pruner, model, calibration, made)
        before = {draw: known.get((subject.name, protocol, row, draw), {}) for draw in range(seed)}
        earlier = {draw: one["kept"] for draw, one in before.items() if "kept" in one}
        pruned = Pruned(
            subject.folder, model, tokenizer, calibration, evaluation, study.segments, pruner, result, seed, earlier
        )
        run |= {"seconds": round(seconds, 2), "removed": round(result.summary.ratio_achieved, 4)}
        for name, settings in study.measures.items():
            run |= MEASURES[name](pruned, **(settings or {}))
        yield run


def read_runs(file: Path) -> dict[tuple, Run]:
    """The runs that a file holds, by model, protocol, row and seed.

    Raises:
        DataError: a line is none.
    """
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else (), 1):
        try:
            run = json.loads(line)
            found[tuple(run[name] for name in KEY)] = run
        except (json.JSONDecodeError, KeyError, TypeError):
            raise DataError(f"{file}:{number}: is no run; remove the line, and that run is made again") from None
    return found


def commit() -> str:
    """The commit that is measured, with a plus where files differ from it."""
    command = ["git", "describe", "--always", "--exclude", "*", "--dirty=+"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def run_study(study: Study, asked: argparse.Namespace, output: Path) -> None:
    """Makes what is missing of a study, and appends it to the output.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    for names, of, kind in (
        (asked.models, study.models, "model"),
        (asked.protocols, study.protocols, "protocol"),
        (asked.rows, [DENSE, *study.rows], "row"),
    ):
        check_names(names or (), of, kind)
    known, stamp, found = read_runs(output), commit(), subjects(asked.shared)
    rows = [row for row in asked.rows or study.rows if row != DENSE]
    for name in asked.models or study.models:
        if not found[name].folder.is_dir():
            print(f"{name}: {found[name].folder} is not there: skipped", file=sys.stderr)
            continue
        todo = [("", DENSE, 0)] if "perplexity" in study.measures else []
        todo += study.runs(name, rows, asked.protocols or list(study.protocols), study.seeds)
        todo = [run for run in todo if (name, *run) not in known]
        for run in measure(study, found[name], todo, known):
            known[tuple(run[key] for key in KEY)] = run
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps({**run, "commit": stamp}, ensure_ascii=False) + "\n")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(words: list[str] | None = None) -> None:
    """Runs one study."""
    parser = Parser(prog="run.py", description="Runs a study.")
    parser.add_argument("study", type=Path, help="file of benchmarks/studies")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of models and texts")
    parser.add_argument("--models", nargs="*", metavar="NAME", help="of the study; all")
    parser.add_argument("--protocols", nargs="*", metavar="NAME", help="of the study; all")
    parser.add_argument("--rows", nargs="*", metavar="NAME", help="of the study; all")
    parser.add_argument("--seeds", type=int, metavar="N", help="draws, instead of the study's")
    parser.add_argument("--segments", type=int, metavar="N", help="of the text measured on, instead of the study's")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the runs (results/data/STUDY.jsonl)")
    asked = parser.parse_args(words)
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    try:
        study = read_study(asked.study)
        study = replace(study, seeds=asked.seeds or study.seeds, segments=asked.segments or study.segments)
        run_study(study, asked, asked.output or ROOT / "results" / "data" / f"{asked.study.stem}.jsonl")
    except MoreauError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
