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

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries that read it

import run
from measure import identity

SCORED = "--calibration {work}/stories-calibration.jsonl"
STORIES = f"{SCORED} --text stories={{work}}/stories-evaluation.jsonl"
WIKITEXT = "--calibration {data}/wikitext2.valid.txt --text WikiText2={data}/wikitext2.test.txt --seeds 1"
BOTH = f"{WIKITEXT} --text C4={{data}}/c4_demo.jsonl --max-segments 200"
TUNED = "--recovery {work}/stories-recovery.jsonl --lr-scale 10 --micro-batch 32"
LARGER = f"{TUNED} --larger-recovery {{work}}/stories-larger.jsonl"
JOBS = (  # table, model, options
    ("table3", "stories260K", f"{STORIES} {TUNED} --max-segments 200"),
    ("table1", "stories260K", f"{STORIES} --max-segments 200"),
    ("table6", "stories260K", f"{STORIES} {LARGER} --max-segments 200"),
    ("table7", "stories260K", f"{STORIES} --max-samples 300 --max-segments 200"),
    ("table9", "wikitext-llama-5m", BOTH),
    ("table2", "wikitext-llama-5m", BOTH),
    ("table10", "wikitext-llama-5m", BOTH),
    ("table1", "wikitext-llama-5m", f"{WIKITEXT} --max-segments 50"),
    ("table3", "babyllama-char105", f"{STORIES} --max-segments 200"),
    ("table8", "stories260K", f"{STORIES} --task-path {{data}}/tasks --limit 10 --seeds 1 --max-segments 50"),
    ("table11", "stories260K", f"{SCORED} {LARGER} --task-path {{data}}/tasks --limit 20 --seeds 1"),
)


def split(stories: Path, folder: Path) -> None:
    """Writes the splits of the stories."""
    lines = stories.read_text(encoding="utf-8").splitlines(keepends=True)
    half = len(lines) // 2
    parts = {"calibration": (0, half), "recovery": (0, 100), "larger": (100, 350), "evaluation": (half, len(lines))}
    for name, (start, end) in parts.items():
        (folder / f"stories-{name}.jsonl").write_text("".join(lines[start:end]), encoding="utf-8")


def collected(output: Path) -> list[str]:
    """Every run of every job as a line of JSON; one that fills several tables once, with the first's row."""
    found: dict[str, dict] = {}
    for model, table in dict.fromkeys((model, table) for table, model, _ in JOBS):
        file = output / model / f"{table}.json"
        for one in json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else ():
            figures = {name: round(value, 4) for name, value in one["figures"].items()}
            one |= {"figures": figures, "removed": round(one["removed"], 4)}
            found.setdefault(identity(one), {"table": table, **one})
    return [json.dumps(one, ensure_ascii=False) for one in found.values()]


def main() -> None:
    """Runs the jobs, one after the other."""
    parser = argparse.ArgumentParser(description="Every recipe on the shared small models.")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--output", type=Path, default=Path("paper-results"))
    parser.add_argument("--jobs", nargs="*", type=int, default=range(len(JOBS)), help="numbers, from 0; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="takes every run of the output folder, one a line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moreau-paper-") as work:
        split(asked.shared / "data" / "tinystories_1k.jsonl", Path(work))
        for table, model, options in (JOBS[number] for number in asked.jobs):
            words = [word.format(work=work, data=asked.shared / "data") for word in options.split()]
            run.main([table, str(asked.shared / "models" / model), "--output", str(asked.output / model), *words])
    if asked.json is not None:
        asked.json.write_text("[\n" + ",\n".join(collected(asked.output)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
