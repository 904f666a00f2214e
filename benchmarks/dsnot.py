"""Why DSnoT helps one model and hurts another: the mean error that it lowers, taken away by a bias instead.

    python benchmarks/dsnot.py [--shared ../shared] [--models NAME …] [--seeds 3] [--sparsity 0.5]

Wanda's mask and DSnoT's, each also with the bias b = (W − Ŵ)·E[x] added to every matrix, layer by layer: it leaves no
mean error at all (ε = 0) and changes nothing else. Perplexity as in benchmarks/masks.py, first 100 segments.
"""

import argparse
import logging
import statistics
from pathlib import Path

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, load_calibration, perplexity
from optimum_moreau.loading import load_model, load_tokenizer
from results import SUBJECTS


def add_bias(model, dense, tokens):
    """In place, for the forward pass: what the missing weights gave in the mean, in the order the matrices compute."""
    for name, module in model.model.layers.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        seen = []
        handle = module.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0].flatten(0, -2).mean(0))
        )
        with torch.no_grad():
            model(tokens)
            bias = (dense.model.layers.get_submodule(name).weight - module.weight) @ seen[0]
        handle.remove()
        module.register_forward_hook(lambda module, args, output, bias=bias: output + bias)


def main():
    """Measures and prints a table."""
    names = [subject.model for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="Wanda's and DSnoT's masks, with and without a bias.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--models", nargs="*", default=names, choices=names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsity", type=float, default=0.5)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    print("| perplexity | Wanda | DSnoT | Wanda + bias | DSnoT + bias |\n|---|---:|---:|---:|---:|")
    for subject in (subject for subject in SUBJECTS if subject.model in arguments.models):
        folder = str(arguments.shared / "models" / subject.model)
        tokenizer, dense = load_tokenizer(folder), load_model(folder, device="cpu")
        calibration, evaluation = subject.documents(arguments.shared)
        found = {(refine, bias): [] for bias in (False, True) for refine in (None, "dsnot")}
        for seed in range(arguments.seeds):
            tokens = load_calibration(calibration, tokenizer, samples=64, sequence_length=128, seed=seed).tokens
            for (refine, bias), values in found.items():
                config = MoreauPrunerConfig(
                    criterion="wanda", pattern="unstructured", sparsity=arguments.sparsity, refine=refine, seed=seed,
                    calibration_samples=64,
                )  # fmt: skip
                model = load_model(folder, device="cpu")
                MoreauPruner(config, tokenizer=tokenizer).prune(model, calibration)
                if bias:
                    add_bias(model, dense, tokens)
                values.append(perplexity(model, tokenizer, evaluation, max_segments=100).perplexity)
        cells = []
        for values in found.values():
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        print(f"| {subject.model}, {100 * arguments.sparsity:.0f} % | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
