"""Runs a study: prunes every model by every protocol and row with every seed, measures, and keeps each run.

    python benchmarks/run.py benchmarks/studies/quality.yaml [--shared ../shared] [--models NAME …] [--protocols NAME …]
        [--rows NAME …] [--measures NAME …] [--seeds N] [--segments N] [--device cuda] [--missing]
        [--output results/data/quality.jsonl] [--work FOLDER]

Each run is one line of JSON, written as soon as it is there; what the output holds already is not repeated, and a run
without some of its measures is pruned again and given those alone. A run is known by its model, protocol, row and seed:
take another output for other --segments, or another --device. Its seconds are of scoring, compensation and cut. Runs
that differ only in what comes after scoring share their scores, made once and kept in --work, and each counts the
seconds of making them. `removed` is the share of the parameters that went. A run that fails is named, and the others go
on. --missing prints what is missing, and runs nothing.

On CUDA (--device cuda, models in float32; gpu.py) no study was run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from bench import Bench
from peers import PEERS
from study import (
    DENSE,
    MEASURED,
    Parser,
    Study,
    check_names,
    commit,
    keep,
    quiet,
    read_runs,
    read_study,
)
from texts import SHARED, subjects
from tqdm import tqdm
from work import STUDIES, WorkFolder

from optimum_moreau.errors import MoreauError

KEY = itemgetter("model", "protocol", "row", "seed")


def run_study(study: Study, asked: argparse.Namespace) -> None:
    """Makes what is missing of a study, and keeps it in the output.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py); of a run, after all others.
    """
    check_names(asked.models or (), study.models, "model")
    check_names(asked.protocols or (), study.protocols, "protocol")
    check_names(asked.rows or (), [DENSE, *study.rows], "row")
    check_names(asked.measures or (), study.measures, "measure")
    stamp, found, failed = commit(), subjects(asked.shared), None
    chosen = asked.rows, asked.protocols, asked.measures
    for name in asked.models or study.models:
        todo = list(study.missing(name, read_runs(asked.output, KEY), *chosen))
        if asked.missing:
            for (protocol, row, seed), wanted in todo:
                print(f"{name} | {protocol} | {row} | seed {seed} | {', '.join(wanted)}")
            continue
        if not found[name].folder.is_dir():
            print(f"{name}: {found[name].folder} is not there: skipped", file=sys.stderr)
            continue
        bench = Bench(study, found[name], asked.shared, asked.device, WorkFolder(asked.work))
        for key, _ in tqdm(_possible(study, todo), desc=name):
            known = read_runs(asked.output, KEY)  # another process may have made it
            wanted = next((wanted for one, wanted in study.missing(name, known, *chosen) if one == key), None)
            if wanted is None:
                continue
            try:
                run = bench.run(key, wanted, known)
            except MoreauError as error:
                failed = error
                print(f"{name}, {', '.join(map(str, key))}: {error}", file=sys.stderr)
                continue
            before = known.get((name, *key), {})
            once = {one: before[one] for one in ("seconds", "removed") if one in before}
            commits = dict.fromkeys([*before.get("commit", stamp).split(", "), stamp])
            run |= {**once, MEASURED: [*before.get(MEASURED, ()), *wanted], "commit": ", ".join(commits)}
            keep(asked.output, run, KEY)
    if failed is not None:
        raise failed


def _possible(study: Study, todo: list[tuple]) -> list[tuple]:
    """What can be run: without the rows of packages that are not installed, each named once."""
    absent = {row: PEERS[one["peer"]].package for row, one in study.rows.items()
              if "peer" in one and not PEERS[one["peer"]].there()}  # fmt: skip
    for row in dict.fromkeys(row for (_, row, _), _ in todo if row in absent):
        print(f"{row}: {absent[row]} is not installed (peers.py says how): skipped", file=sys.stderr)
    return [one for one in todo if one[0][1] not in absent]


def main(words: list[str] | None = None) -> None:
    """Runs one study."""
    parser = Parser(prog="run.py", description="Runs a study.")
    parser.add_argument("study", type=Path, help="file of benchmarks/studies")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of models and texts")
    for names in ("--models", "--protocols", "--rows"):
        parser.add_argument(names, nargs="*", metavar="NAME", help="of the study; all")
    parser.add_argument("--measures", nargs="*", metavar="NAME", help="of the study; those that each row is to have")
    parser.add_argument("--seeds", type=int, metavar="N", help="draws, instead of the study's")
    parser.add_argument("--segments", type=int, metavar="N", help="of the text measured on, instead of the study's")
    parser.add_argument("--device", default="cpu", help="torch device (cpu); models are in float32 on others")
    parser.add_argument("--missing", action="store_true", help="print what is missing, and run nothing")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the runs (results/data/STUDY.jsonl)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help=f"of what rows share ({STUDIES}/STUDY)")
    asked = parser.parse_args(words)
    asked.output = asked.output or Path(__file__).parents[1] / "results" / "data" / f"{asked.study.stem}.jsonl"
    asked.work = asked.work or STUDIES / asked.study.stem
    quiet()
    try:
        study = read_study(asked.study)
        run_study(replace(study, seeds=asked.seeds or study.seeds, segments=asked.segments or study.segments), asked)
    except MoreauError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
