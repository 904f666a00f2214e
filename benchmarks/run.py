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
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from measures import BOS, MEASURES, Pruned, prune
from study import (
    DENSE,
    SHARED,
    Parser,
    Study,
    Subject,
    check_names,
    commit,
    keep,
    quiet,
    read_runs,
    read_study,
    subjects,
)
from tqdm import tqdm

from optimum_moreau import MoreauPruner, perplexity
from optimum_moreau.errors import MoreauError
from optimum_moreau.loading import load_model, load_tokenizer

KEY = itemgetter("model", "protocol", "row", "seed")
Run = dict[str, Any]


def measure(study: Study, subject: Subject, todo: list[tuple], known: Mapping[tuple, Run]) -> Iterator[Run]:
    """Yields the runs of one model, each as soon as it is there."""
    tokenizer, (calibration, evaluation) = load_tokenizer(str(subject.folder)), subject.documents()
    scores: dict[str, tuple[Any, float]] = {}
    for protocol, row, seed in tqdm(todo, desc=subject.name):
        model = load_model(str(subject.folder), device="cpu")
        run: Run = {"model": subject.name, "protocol": protocol, "row": row, "seed": seed}
        if row == DENSE:
            value = perplexity(model, tokenizer, evaluation, max_segments=study.segments, bos=BOS).perplexity
            yield {**run, "perplexity": round(value, 4), "seconds": 0.0, "removed": 0.0}
            continue
        pruner = MoreauPruner(study.config(protocol, row, seed, model.config.num_hidden_layers), tokenizer=tokenizer)
        result, seconds = prune(pruner, model, calibration, scores)
        before = {draw: known.get((subject.name, protocol, row, draw), {}) for draw in range(seed or 0)}
        earlier = {draw: one["kept"] for draw, one in before.items() if "kept" in one}
        texts = calibration, evaluation, study.segments
        pruned = Pruned(subject.folder, model, tokenizer, *texts, pruner, result, protocol, seed, earlier)
        run |= {"seconds": round(seconds, 2), "removed": round(result.summary.ratio_achieved, 4)}
        for name, settings in study.measures.items():
            run |= MEASURES[name](pruned, **(settings or {}))
        yield run


def run_study(study: Study, asked: argparse.Namespace) -> None:
    """Makes what is missing of a study, and appends it to the output.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    check_names(asked.models or (), study.models, "model")
    check_names(asked.protocols or (), study.protocols, "protocol")
    check_names(asked.rows or (), [DENSE, *study.rows], "row")
    known, stamp, found = read_runs(asked.output, KEY), commit(), subjects(asked.shared)
    rows = [row for row in asked.rows or study.rows if row != DENSE]
    for name in asked.models or study.models:
        if not found[name].folder.is_dir():
            print(f"{name}: {found[name].folder} is not there: skipped", file=sys.stderr)
            continue
        todo = [("", DENSE, 0)] if "perplexity" in study.measures else []
        todo += study.runs(name, rows, asked.protocols or list(study.protocols), study.seeds)
        todo = [run for run in todo if (name, *run) not in known]
        for run in measure(study, found[name], todo, known):
            known[KEY(run)] = run
            keep(asked.output, {**run, "commit": stamp})


def main(words: list[str] | None = None) -> None:
    """Runs one study."""
    parser = Parser(prog="run.py", description="Runs a study.")
    parser.add_argument("study", type=Path, help="file of benchmarks/studies")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of models and texts")
    for names in ("--models", "--protocols", "--rows"):
        parser.add_argument(names, nargs="*", metavar="NAME", help="of the study; all")
    parser.add_argument("--seeds", type=int, metavar="N", help="draws, instead of the study's")
    parser.add_argument("--segments", type=int, metavar="N", help="of the text measured on, instead of the study's")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the runs (results/data/STUDY.jsonl)")
    asked = parser.parse_args(words)
    asked.output = asked.output or Path(__file__).parents[1] / "results" / "data" / f"{asked.study.stem}.jsonl"
    quiet()
    try:
        study = read_study(asked.study)
        run_study(replace(study, seeds=asked.seeds or study.seeds, segments=asked.segments or study.segments), asked)
    except MoreauError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
