"""Runs every recipe on the shared small models: `run.py`, unchanged, on splits of the shared texts.

    python benchmarks/paper/small.py [--shared ../shared] [--output paper-results] [--jobs NUMBER …] [--json FILE]

The stories are split: the first half to calibrate and tune on (100 for the recovery set, 250 others for the larger
one), the second to measure on; wikitext-llama-5m is calibrated on WikiText-2 validation. Cheap settings, each printed
with its table: few segments, few questions, fewer calibration windows than Table 7's 1000, learning rates times ten.
--json FILE takes what the output folder holds, as results/data/paper.jsonl has it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries that read it

import run
from texts import SHARED

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


def collected(output: Path) -> Iterator[run.Run]:
    """Every run of every job; one that fills several tables once, with the first's name; then Table 1's Diff."""
    found: dict[str, run.Run] = {}
    for table, model, _ in JOBS:
        for key, line in run.read_runs(output / model / f"{table}.jsonl", run.identity).items():
            found.setdefault(key, line)
    pairs: dict[tuple, run.Run] = {}
    for line in found.values():
        yield {name: value for name, value in line.items() if name not in ("calibration", "texts")}
        if line["table"] == "table1":
            ratio, _, dtype = line["protocol"].partition(" hidden, ")
            same = {"table": "diff", "model": line["model"], "protocol": ratio, "row": line["row"]}
            same = pairs.setdefault((line["model"], ratio, line["row"], line["seed"]), same | {"seed": line["seed"]})
            same |= {{"bfloat16": "bf16", "float16": "fp16"}[dtype]: line["perplexity"], "commit": line["commit"]}
    for pair in pairs.values():
        stamp = pair.pop("commit")
        yield {**pair, "diff": round(abs(pair["bf16"] - pair["fp16"]), 4), "commit": stamp}


def main() -> None:
    """Runs the jobs, one after the other."""
    parser = argparse.ArgumentParser(description="Every recipe on the shared small models.")
    parser.add_argument("--shared", type=Path, default=SHARED)
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
        lines = [json.dumps(one, ensure_ascii=False) for one in collected(asked.output)]
        asked.json.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
