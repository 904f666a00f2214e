"""Runs every recipe on the shared small models: `run.py`, unchanged, on splits of the shared texts.

    python benchmarks/paper/small.py [--shared ../shared] [--output paper-results] [--jobs NUMBER …] [--json FILE]

The stories are split: the first half to calibrate and tune on (100 for the recovery set, 250 others for the larger
one), the second to measure on; wikitext-llama-5m is calibrated on WikiText-2 validation. Cheap settings, each printed
with its table: few segments, few questions, fewer calibration windows than Table 7's 1000, learning rates times ten.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

TUNED = "--lr-scale 10 --micro-batch 32"
JOBS = (  # table, model, options beside the texts
    ("table3", "stories260K", f"--recovery {TUNED} --max-segments 200"),
    ("table1", "stories260K", "--max-segments 200"),
    ("table6", "stories260K", f"--recovery --larger-recovery {TUNED} --max-segments 200"),
    ("table7", "stories260K", "--max-samples 300 --max-segments 200"),
    ("table9", "wikitext-llama-5m", "--seeds 1 --max-segments 200"),
    ("table2", "wikitext-llama-5m", "--seeds 1 --max-segments 200"),
    ("table10", "wikitext-llama-5m", "--seeds 1 --max-segments 200"),
    ("table1", "wikitext-llama-5m", "--seeds 1 --max-segments 50"),
    ("table3", "babyllama-char105", "--max-segments 200"),
    ("table8", "stories260K", "--task-path --limit 10 --seeds 1 --max-segments 50"),
    ("table11", "stories260K", f"--recovery --larger-recovery {TUNED} --task-path --limit 20 --seeds 1"),
)  # fmt: skip


def splits(shared: Path, folder: Path) -> dict[str, Path]:
    """Writes the splits of the stories; returns every text by name."""
    stories = (shared / "data" / "tinystories_1k.jsonl").read_text(encoding="utf-8").splitlines()
    half = len(stories) // 2
    parts = {
        "calibration": stories[:half],
        "recovery": stories[:100],
        "larger": stories[100:350],
        "evaluation": stories[half:],
    }
    found = {}
    for name, records in parts.items():
        assert all("text" in json.loads(record) for record in records)
        found[name] = folder / f"stories-{name}.jsonl"
        found[name].write_text("\n".join(records) + "\n", encoding="utf-8")
    return found | {name: shared / "data" / f"wikitext2.{name}.txt" for name in ("valid", "test")}


def words(job: tuple[str, str, str], shared: Path, files: dict[str, Path], output: Path) -> list[str]:
    """The command line of a job."""
    table, model, options = job
    found = [table, str(shared / "models" / model), "--output", str(output / model)]
    if model == "wikitext-llama-5m":
        found += ["--calibration", str(files["valid"]), "--text", f"WikiText2={files['test']}"]
        if table != "table1":
            found += ["--text", f"C4={shared / 'data' / 'c4_demo.jsonl'}"]
    else:
        found += ["--calibration", str(files["calibration"])]
        if table != "table11":
            found += ["--text", f"stories={files['evaluation']}"]
    given = {
        "--recovery": files["recovery"],
        "--larger-recovery": files["larger"],
        "--task-path": shared / "data" / "tasks",
    }
    for option in options.split():
        found += [option, str(given[option])] if option in given else [option]
    return found


def collected(output: Path) -> list[str]:
    """Every run of every job as a line of JSON; one that fills several tables once, with the first's row."""
    from measure import identity

    found = {}
    for model, table in dict.fromkeys((model, table) for table, model, _ in JOBS):
        file = output / model / f"{table}.json"
        for run in json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else ():
            figures = {name: round(value, 4) for name, value in run["figures"].items()}
            run |= {"figures": figures, "removed": round(run["removed"], 4)}
            found.setdefault(identity(run), {"table": table, **run})
    return [json.dumps(run, ensure_ascii=False) for run in found.values()]


def main() -> None:
    """Runs the jobs, one after the other."""
    parser = argparse.ArgumentParser(description="Every recipe on the shared small models.")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--output", type=Path, default=Path("paper-results"))
    parser.add_argument("--jobs", nargs="*", type=int, default=range(len(JOBS)), help="numbers, from 0; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="takes every run of the output folder, one a line")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import run  # imports the libraries that read the variable

    with tempfile.TemporaryDirectory(prefix="moreau-paper-") as work:
        files = splits(arguments.shared, Path(work))
        for number in arguments.jobs:
            run.main(words(JOBS[number], arguments.shared, files, arguments.output))
    if arguments.json is not None:
        arguments.json.write_text("[\n" + ",\n".join(collected(arguments.output)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
