"""Whether the choice of units settles with more calibration, by importances of the mean gradient or of every sample.

    python benchmarks/overlap.py [--shared ../shared] [--models NAME …] [--criteria NAME …] [--passes 10 100 400 1000]
    python benchmarks/overlap.py --budgets uniform global search [--shared ../shared] [--models NAME …]

Prunes a quarter of the units in the default scope, with gradients and with importances averaged over the samples
(`reduction`), and prints the Jaccard overlap of the units removed between calibration draws, mean over pairs of seeds,
and the perplexity. A pass is one sample's forward and backward: Algorithm 1 takes T of them for every sample, here with
the paper's steps. With --budgets it is the preset `best` that is planned, 20 % in the default scope and 50 % in all
layers, with each of these budgets.
"""

import argparse
import logging
import statistics
import time
from itertools import combinations
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, apply_plan, perplexity
from optimum_moreau.planning import plan_overlap
from results import SUBJECTS, cell

# criterion → its settings, and the passes that each sample takes
MOREAU = {"criterion": "moreau", "rho": 0.05, "step_size": 1e-3, "sigma": 0.05}
CRITERIA = {
    "taylor": ({"criterion": "taylor"}, 1),
    "moreau, T = 10": ({**MOREAU, "steps": 10}, 10),
    "moreau, T = 2": ({**MOREAU, "steps": 2}, 2),
}
REDUCTIONS = ("gradient", "importance")
SEEDS = range(3)
SEGMENTS = 100  # of 128 tokens


def presets(subject, shared, budgets) -> None:
    """Prints one line per share and budget of the preset `best`."""
    folder = shared / "models" / subject.model
    tokenizer, (calibration, _) = AutoTokenizer.from_pretrained(folder), subject.documents(shared)
    for share in (0.2, 0.5):
        for budget in budgets:
            plans = []
            for seed in SEEDS:
                model = AutoModelForCausalLM.from_pretrained(folder)
                everywhere = (0, model.config.num_hidden_layers)
                scope = {"attention_layers": everywhere, "mlp_layers": everywhere} if share > 0.2 else {}
                config = MoreauPrunerConfig.best(pruning_ratio=share, budget=budget, seed=seed, **scope)
                plans.append(MoreauPruner(config, tokenizer=tokenizer).plan(model, calibration)[0])
            print(f"| {subject.model} | {share:.0%} | {budget} | {removed_overlap(plans):.3f} |", flush=True)


def removed_overlap(plans) -> float:
    """Mean over the pairs."""
    return statistics.mean(plan_overlap(*pair)["all"].removed for pair in combinations(plans, 2))


def main() -> None:
    """Prints one line per model, criterion, reduction and number of passes; or per model, share and budget."""
    names = [subject.model for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="Overlap of plans between calibration draws, by reduction.")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--models", nargs="*", default=names[:2], choices=names)
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), choices=CRITERIA)
    parser.add_argument("--passes", nargs="*", type=int, default=[10, 100, 400, 1000])
    parser.add_argument("--budgets", nargs="*", metavar="NAME", help="of the preset `best`, instead")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if arguments.budgets:
        print("| model | share | budget | overlap |\n|---|---:|---|---:|")
        for subject in (subject for subject in SUBJECTS if subject.model in arguments.models):
            presets(subject, arguments.shared, arguments.budgets)
        return
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
                    line = f"{subject.model} | {name} | {passes} | {samples} | {reduction}"
                    line += f" | {removed_overlap(plans):.3f}"
                    print(f"| {line} | {cell(found)} | {statistics.mean(seconds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
