"""What a compensation gives back when hidden channels go. A table for docs/results.md.

    python benchmarks/hidden_refit.py [--shared ../shared] [--seeds 3] [--models NAME …] [--rows NAME …]

About 15 % of the parameters in hidden channels, by `taylor`; as many channels as the heads allow. Perplexity on the
text of the other tables, first 100 segments; a seed draws the windows. `closed`: the share of the gap to the dense
model, from `none`.
"""

import argparse
import logging
import os
import statistics
from pathlib import Path

from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, perplexity
from optimum_moreau.loading import load_model, load_tokenizer
from results import SUBJECTS

ROWS = {
    "none": {},
    "refit": {"compensation": "refit"},
    "refit with intercept": {"compensation": "refit", "intercept": True},
    "scale": {"compensation": "scale"},
    "bias": {"compensation": "bias"},
    "none, norms folded": {"fold_norms": True},
    "refit, norms folded": {"compensation": "refit", "fold_norms": True},
}


def main():
    """Prints a table for every model."""
    parser = argparse.ArgumentParser(description="What a compensation gives back when hidden channels go.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="*", default=[subject.model for subject in SUBJECTS])
    parser.add_argument("--rows", nargs="*", default=[*ROWS], choices=[*ROWS], metavar="NAME")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    for subject in (subject for subject in SUBJECTS if subject.model in args.models):
        folder = str(args.shared / "models" / subject.model)
        tokenizer = load_tokenizer(folder)
        calibration, evaluation = subject.documents(args.shared)

        def quality(model, tokenizer=tokenizer, evaluation=evaluation):
            return perplexity(model, tokenizer, evaluation, max_segments=100).perplexity

        dense, start = quality(load_model(folder, device="cpu")), None
        print(f"\n| {subject.model}, dense {dense:.2f} | removed | perplexity | closed |\n|---|---:|---:|---:|")
        for row in args.rows:
            found = []
            for seed in range(args.seeds):
                model = load_model(folder, device="cpu")
                config = MoreauPrunerConfig("taylor", 0.15, targets=("hidden",), seed=seed, **ROWS[row])
                summary = MoreauPruner(config, tokenizer=tokenizer).prune(model, calibration).summary
                found.append(quality(model))
            mean = statistics.mean(found)
            spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
            start = start or mean
            cells = [f"{100 * summary.ratio_achieved:.1f} %", f"{mean:.2f}{spread}"]
            print(f"| {row} | {' | '.join(cells)} | {100 * (start - mean) / (start - dense):.0f} % |", flush=True)


if __name__ == "__main__":
    main()
