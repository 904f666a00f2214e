"""Perplexity of masked models by every criterion, with and without refinement: a table for docs/results.md.

    python benchmarks/masks.py [--shared ../shared] [--models NAME …] [--patterns NAME …] [--seeds 3]
        [--samples 64] [--output masks.json]

50 and 60 % unstructured (compared within rows) and 2:4, all matrices of all layers, masked layers fed forward; the text
of the other tables, first 200 segments. Runs that the output holds already are not repeated.
"""

import argparse
import json
import logging
import os
import statistics
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, perplexity
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.registry import CRITERIA
from results import SUBJECTS

PATTERNS = {
    "50 %": {"pattern": "unstructured", "sparsity": 0.5},
    "60 %": {"pattern": "unstructured", "sparsity": 0.6},
    "2:4": {"pattern": "2:4"},
    "2:4, permuted": {"pattern": "2:4", "permute": True},
}
REFINEMENTS = {"": {}, "dsnot": {"refine": "dsnot"}, "r2-dsnot": {"refine": "r2-dsnot"}}
ROWS = [name for name in CRITERIA if name not in ("smoothgrad", "taylor-mixed", "taylor-vector", "magnitude-l2")]
SEGMENTS = 200


def measure(subject, shared, arguments, known):
    """Yields every run of one model that is not known yet."""
    folder = str(shared / "models" / subject.model)
    tokenizer = load_tokenizer(folder)
    calibration, evaluation = subject.documents(shared)
    keys = [
        (subject.model, row, refinement, pattern, seed)
        for row in arguments.criteria
        for seed in range(arguments.seeds)
        for pattern in arguments.patterns
        for refinement in REFINEMENTS
    ]
    if (subject.model, "dense", "", "", 0) not in known:
        dense = perplexity(load_model(folder, device="cpu"), tokenizer, evaluation, max_segments=SEGMENTS).perplexity
        yield (subject.model, "dense", "", "", 0), dense, 0.0
    scored = {}
    for key in tqdm([key for key in keys if key not in known], desc=subject.model):
        _, row, refinement, pattern, seed = key
        if not CRITERIA.get(row).by_layer and scored.get("of") != (row, seed):
            scored = {"of": (row, seed)}
        settings = {**PATTERNS[pattern], **REFINEMENTS[refinement]}
        config = MoreauPrunerConfig(criterion=row, calibration_samples=arguments.samples, seed=seed, **settings)
        model = load_model(folder, device="cpu")
        known_scores = len(scored) > 1
        start = time.perf_counter()
        with remembered(row, scored):
            MoreauPruner(config, tokenizer=tokenizer).prune(model, calibration)
        seconds = None if known_scores else time.perf_counter() - start
        yield key, perplexity(model, tokenizer, evaluation, max_segments=SEGMENTS).perplexity, seconds


@contextmanager
def remembered(row, scored):
    """Scores of the dense model are computed once for all patterns and refinements of a draw."""
    criterion = CRITERIA.get(row)
    own = criterion.score

    def score(self, run):
        if len(scored) == 1:
            keep = lambda name, elements: scored.setdefault(name, []).append(elements.cpu().clone())  # noqa: E731
            own(self, replace(run, emit=keep))
        for name, parts in scored.items():
            for elements in parts if name != "of" else ():
                run.emit(name, elements.clone())

    if not criterion.by_layer:
        criterion.score = score
    try:
        yield
    finally:
        criterion.score = own


def table(model, runs, criteria, patterns):
    """Markdown of one model: criteria × patterns × refinements, mean ± deviation over the seeds."""
    heads = [
        f"{pattern}{f', {refinement}' if refinement else ''}" for pattern in patterns for refinement in REFINEMENTS
    ]
    lines = [f"| {model} | {' | '.join(heads)} | seconds |", f"|---|{'---:|' * (len(heads) + 1)}"]
    for row in criteria:
        cells, seconds = [], []
        for pattern in patterns:
            for refinement in REFINEMENTS:
                found = [value for key, value in runs.items() if key[:4] == (model, row, refinement, pattern)]
                values = [value for value, _ in found]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
                seconds += [took for _, took in found if took is not None]
        lines.append(f"| {row} | {' | '.join(cells)} | {statistics.mean(seconds) if seconds else 0:.1f} |")
    return lines


def main():
    """Measures, writes the runs as JSON, prints the tables."""
    names = [subject.model for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="Perplexity of masked models by every criterion.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--models", nargs="*", default=names, choices=names)
    parser.add_argument("--criteria", nargs="*", default=ROWS)
    parser.add_argument("--patterns", nargs="*", default=[*PATTERNS][:3], choices=[*PATTERNS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help="calibration windows of 128 tokens")
    parser.add_argument("--output", type=Path, default=Path("masks.json"))
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    saved = json.loads(arguments.output.read_text()) if arguments.output.is_file() else []
    runs = {tuple(one[:5]): (one[5], one[6]) for one in saved}
    for subject in (subject for subject in SUBJECTS if subject.model in arguments.models):
        for key, value, seconds in measure(subject, arguments.shared, arguments, runs):
            runs[key] = (value, seconds)
            arguments.output.write_text(json.dumps([[*key, *found] for key, found in runs.items()]) + "\n")
        print("\n".join([*table(subject.model, runs, arguments.criteria, arguments.patterns), ""]), flush=True)
        print(f"dense: {runs[subject.model, 'dense', '', '', 0][0]:.2f}\n")


if __name__ == "__main__":
    main()
