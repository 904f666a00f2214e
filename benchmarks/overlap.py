"""Whether the choice of units settles with more calibration, by importances of the mean gradient or of every sample.

    python benchmarks/overlap.py [--shared ../shared] [--models NAME …] [--criteria NAME …] [--passes 10 100 400 1000]

Prunes a quarter of the units in the default scope, with gradients and with importances averaged over the samples
(`reduction`), and prints the Jaccard overlap of the units removed between calibration draws, mean over pairs of seeds,
and the perplexity. A pass is one sample's forward and backward: Algorithm 1 takes T of them for every sample.
"""

import argparse
import logging
import statistics
import time
from itertools import combinations
from pathlib import Path

import torch
from results import SUBJECTS, cell
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, apply_plan, perplexity
from optimum_moreau.plan import plan_overlap

# criterion → its settings, and the passes that each sample takes
CRITERIA = {
    "taylor": ({"criterion": "taylor"}, 1),
    "moreau, T = 10": ({"criterion": "moreau", "steps": 10}, 10),
    "moreau, T = 2": ({"criterion": "moreau", "steps": 2}, 2),
}
REDUCTIONS = ("gradient", "importance")
SEEDS = range(3)
SEGMENTS = 100  # of 128 tokens


def main() -> None:
    """Prints one line per model, criterion, reduction and number of passes."""
    names = [subject.model for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="Overlap of plans between calibration draws, by reduction.")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--models", nargs="*", default=names[:2], choices=names)
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), choices=CRITERIA)
    parser.add_argument("--passes", nargs="*", type=int, default=[10, 100, 400, 1000])
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print("| model | criterion | passes | samples | reduction | overlap | perplexity | seconds |")
    print("|---|---|---:|---:|---|---:|---:|---:|", flush=True)
    for subject in SUBJECTS:
        if subject.model not in arguments.models:
            continue
        folder = arguments.shared / "models" / subject.model
        tokenizer = AutoTokenizer.from_pretrained(folder)
        calibration, evaluation = subject.documents(arguments.shared)
        for passes in arguments.passes:
            for name in arguments.criteria:
                settings, of_a_sample = CRITERIA[name]
                samples = max(passes // of_a_sample, 1)
                for reduction in REDUCTIONS:
                    plans, found, seconds = [], [], []
                    for seed in SEEDS:
                        model = AutoModelForCausalLM.from_pretrained(folder)
                        config = MoreauPrunerConfig(
                            **settings, reduction=reduction, unit_ratio=0.25, calibration_samples=samples, seed=seed
                        )
                        start = time.perf_counter()
                        plans.append(MoreauPruner(config, tokenizer=tokenizer).plan(model, calibration)[0])
                        seconds.append(time.perf_counter() - start)
                        apply_plan(model, plans[-1])
                        found.append(perplexity(model, tokenizer, evaluation, max_segments=SEGMENTS).perplexity)
                    overlap = statistics.mean(plan_overlap(*pair)["all"].removed for pair in combinations(plans, 2))
                    line = f"{subject.model} | {name} | {passes} | {samples} | {reduction} | {overlap:.3f}"
                    print(f"| {line} | {cell(found)} | {statistics.mean(seconds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
