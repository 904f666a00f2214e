"""Perplexity before pruning, after it, and after recovery, on the shared real models; a table for docs/results.md.

    python benchmarks/recovery.py [--shared ../shared] [--seeds 3] [--models NAME …] [--steps 200] [--lr 1e-3] [--json]

20 % of the parameters go, in the default scope, by `moreau-gs` alone; LoRA then learns from the text that was
calibrated on, which is apart from the text that perplexity is measured on. A seed draws the windows, the noise, the
order of the sequences and the dropout.
"""

import argparse
import json
import logging
import os
import statistics
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, RecoveryConfig
from results import SEGMENTS, SUBJECTS


def measure(subject, shared, seed, steps, learning_rate):
    """Perplexity of the three stages, and seconds of the training."""
    folder = shared / "models" / subject.model
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    calibration, evaluation = subject.documents(shared)
    pruner = MoreauPruner(MoreauPrunerConfig(pruning_ratio=0.2, seed=seed), tokenizer=tokenizer)
    before = pruner.evaluate(evaluation, model, max_segments=SEGMENTS)
    pruner.prune(model, calibration)
    pruned = pruner.evaluate(evaluation, max_segments=SEGMENTS)
    config = RecoveryConfig(
        max_steps=steps,
        batch_size=16,
        micro_batch_size=16,
        learning_rate=learning_rate,
        sequence_length=128,
        validation=0.0,
        save_steps=steps,
        seed=seed,
    )
    training = pruner.recover(calibration, config).training
    recovered = pruner.evaluate(evaluation, max_segments=SEGMENTS)
    return {"before": before, "pruned": pruned, "recovered": recovered, "seconds": training["seconds"]}


def spread(values):
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def main():
    """Prints the table, a row a model."""
    parser = argparse.ArgumentParser(description="Perplexity before pruning, after it, and after recovery.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="*", default=[subject.model for subject in SUBJECTS])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    rows = {}
    for subject in (subject for subject in SUBJECTS if subject.model in args.models):
        rows[subject.model] = [measure(subject, args.shared, seed, args.steps, args.lr) for seed in range(args.seeds)]
        if not args.json:
            cells = [spread([row[key] for row in rows[subject.model]]) for key in ("before", "pruned", "recovered")]
            seconds = statistics.mean(row["seconds"] for row in rows[subject.model])
            print(f"| {subject.model} | {subject.text} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
