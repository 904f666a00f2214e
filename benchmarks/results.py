"""Quality of every criterion on the shared real models, as docs/results.md and docs/results.json.

    python benchmarks/results.py --output docs/results.md [--shared ../shared] [--seeds 3] [--models NAME …]
        [--protocols NAME …]

Each model is pruned by 20 % of its parameters in the default scope, by 50 % with all layers in scope, by 20 % in hidden
channels, and by 20 % in whole layers; perplexity is measured on text that was not calibrated on. A seed draws the
calibration windows, the noise and the random scores. Models and protocols not asked for stay as they were measured.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, perplexity
from optimum_moreau.data.sources import read_documents
from optimum_moreau.registry import CRITERIA

SEGMENTS = 1000  # of 128 tokens
# rows of the table: every criterion, and two readings of moreau-gs that the paper's text and its code give
ROWS = {
    **{name: {"criterion": name} for name in CRITERIA},
    "moreau-gs, the paper's η": {"criterion": "moreau-gs", "eta": 5e-6},
    "moreau-gs, released": {"criterion": "moreau-gs", "released": True},
    "taylor, norms folded": {"criterion": "taylor", "fold_norms": True},
    "block influence": {"criterion": "magnitude", "layer_criterion": "block-influence"},
}
ONLY = {"taylor, norms folded": "20 % hidden", "block influence": "20 % layers"}  # rows of one protocol


def protocols(depth: int) -> dict[str, dict]:
    """Name → config fields, for a model of so many layers."""
    return {
        "20 %": {"pruning_ratio": 0.2},
        "50 %, all layers": {"pruning_ratio": 0.5, "attention_layers": (0, depth), "mlp_layers": (0, depth)},
        "20 % hidden": {"pruning_ratio": 0.2, "targets": ("hidden",)},
        "20 % layers": {"pruning_ratio": 0.2, "targets": ("layers",), "whole_layers": (0, depth)},
    }


PROTOCOLS = tuple(protocols(1))


@dataclass(frozen=True)
class Subject:
    """A real model, the text it knows, and how that text is split."""

    model: str
    text: str
    calibration: str
    evaluation: str

    def documents(self, shared: Path) -> tuple[list[str], list[str]]:
        """Returns calibration and evaluation documents; one file is split in halves."""
        calibration = read_documents(shared / "data" / self.calibration)
        if self.evaluation != self.calibration:
            return calibration, read_documents(shared / "data" / self.evaluation)
        half = len(calibration) // 2
        return calibration[:half], calibration[half:]


SUBJECTS = (
    Subject("stories260K", "stories", "tinystories_1k.jsonl", "tinystories_1k.jsonl"),
    Subject("babyllama-char105", "stories", "tinystories_1k.jsonl", "tinystories_1k.jsonl"),
    Subject("wikitext-llama-5m", "WikiText-2 test", "wikitext2.valid.txt", "wikitext2.test.txt"),
)


def measure(subject: Subject, shared: Path, seeds: int, chosen: list[str]) -> dict:
    """Prunes one model in every way of some protocols; returns its rows."""
    folder = shared / "models" / subject.model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    calibration, evaluation = subject.documents(shared)

    def load():
        return AutoModelForCausalLM.from_pretrained(folder)

    def quality(model):
        return perplexity(model, tokenizer, evaluation, max_segments=SEGMENTS).perplexity

    settings = {name: scope for name, scope in protocols(load().config.num_hidden_layers).items() if name in chosen}
    rows = []
    bar = tqdm(total=len(settings) * len(ROWS) * seeds, desc=subject.model)
    for protocol, scope in settings.items():
        for name, changes in ROWS.items():
            if ONLY.get(name, protocol) != protocol:
                continue
            found, seconds, achieved = [], [], []
            for seed in range(seeds):
                model = load()
                start = time.perf_counter()
                pruner = MoreauPruner(MoreauPrunerConfig(**scope, **changes, seed=seed), tokenizer=tokenizer)
                summary = pruner.prune(model, calibration).summary
                seconds.append(time.perf_counter() - start)
                achieved.append(summary.ratio_achieved)
                found.append(quality(model))
                bar.update()
            measured = {"perplexity": found, "seconds": seconds, "achieved": achieved}
            rows.append({"protocol": protocol, "row": name, **measured})
    return {"model": subject.model, "text": subject.text, "dense": quality(load()), "rows": rows}


def cell(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def table(result: dict) -> list[str]:
    """Markdown of one model: criteria × protocols, the best mean of each in bold."""
    found = {(row["row"], row["protocol"]): row for row in result["rows"]}
    best = {
        protocol: min(statistics.mean(row["perplexity"]) for (_, p), row in found.items() if p == protocol)
        for protocol in PROTOCOLS
    }
    achieved = {p: statistics.mean(found["taylor", p]["achieved"]) for p in PROTOCOLS}
    lines = [
        f"### {result['model']}",
        "",
        f"Perplexity on {result['text']}, dense {result['dense']:.2f}. Parameters removed: "
        + ", ".join(f"{p}: {100 * share:.1f} %" for p, share in achieved.items())
        + ".",
        "",
        f"| criterion | {' | '.join(PROTOCOLS)} | seconds |",
        f"|---|{'---:|' * (len(PROTOCOLS) + 1)}",
    ]
    for name in ROWS:
        cells, seconds = [], []
        for protocol in PROTOCOLS:
            row = found.get((name, protocol))
            if row is None:
                cells.append("")
                continue
            words = cell(row["perplexity"])
            cells.append(f"**{words}**" if statistics.mean(row["perplexity"]) == best[protocol] else words)
            seconds += row["seconds"]
        lines.append(f"| {name} | {' | '.join(cells)} | {statistics.mean(seconds):.1f} |")
    return [*lines, ""]


def merged(old: dict | None, new: dict) -> dict:
    """One model's rows, measured now or before."""
    now = {(row["row"], row["protocol"]) for row in new["rows"]}
    kept = [row for row in (old or {"rows": []})["rows"] if (row["row"], row["protocol"]) not in now]
    return {**new, "rows": [*kept, *new["rows"]]}


def main() -> None:
    """Measures and writes the tables between the markers of the output file, and the rows as JSON beside it."""
    names = [subject.model for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="Quality of every criterion on the shared real models.")
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="*", default=names, choices=names)
    parser.add_argument("--protocols", nargs="*", default=list(PROTOCOLS), choices=PROTOCOLS)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    data = arguments.output.with_suffix(".json")
    before = {result["model"]: result for result in json.loads(data.read_text())["results"]} if data.is_file() else {}
    for subject in SUBJECTS:
        if subject.model in arguments.models:
            new = measure(subject, arguments.shared, arguments.seeds, arguments.protocols)
            before[subject.model] = merged(before.get(subject.model), new)
    results = [before[name] for name in names if name in before]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    )
    data.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    tables = [f"Measured on {machine}; {arguments.seeds} seeds, mean ± standard deviation.", ""]
    for result in results:
        tables += table(result)
    begin, end = "<!-- tables: made by benchmarks/results.py -->", "<!-- end of tables -->"
    text = arguments.output.read_text() if arguments.output.is_file() else f"{begin}\n{end}\n"
    head, rest = text.split(begin)
    arguments.output.write_text(f"{head}{begin}\n\n" + "\n".join(tables) + f"{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
