"""Moreau's steps by the paper's scale and by their own: perplexity, and how far δ moves the weights.

    python benchmarks/moreau_scale.py [--shared ../shared] [--models NAME …] [--rows NAME …] [--seeds 4]

Prunes 25 and 50 % of the units in the default scope, from the same scores, with the same draws of 10 × 128 tokens for
every row, untuned, and measures the perplexity of the first 100 segments. ‖δ‖/‖w‖ is over all weights in scope.
"""

import argparse
import logging
import math
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, apply_plan, perplexity
from optimum_moreau.envelope import State
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from results import SUBJECTS, cell

PAPER = {"rho": 0.05, "step_size": 1e-3, "sigma": 0.05}
RELATIVE = {"relative_rho": 0.03, "step_ratio": 0.2, "sigma": 0.2}
GROUPS = {"criterion": "moreau-gs", "eta_quantile": 0.1}
ROWS = {
    "taylor": {"criterion": "taylor"},
    "the paper's ρ, γ, σ": PAPER,
    "the paper's ρ, γ with σ = 0.2": {**PAPER, "sigma": 0.2},
    "ρ = 0.2, γ = 0.1, σ = 0.2": {"rho": 0.2, "step_size": 0.1, "sigma": 0.2},
    "relative, ρ̂ = 0.03, σ = 0.05": {**RELATIVE, "sigma": 0.05},
    "relative, ρ̂ = 0.01, σ = 0.2": {**RELATIVE, "relative_rho": 0.01},
    "relative, ρ̂ = 0.03, σ = 0.2": RELATIVE,
    "relative, ρ̂ = 0.1, σ = 0.2": {**RELATIVE, "relative_rho": 0.1},
    "moreau-gs, the paper's ρ, γ, σ": {**GROUPS, "rho": 0.2, "step_size": 2e-4, "sigma": 0.05},
    "moreau-gs, relative, ρ̂ = 0.03, σ = 0.2": {**GROUPS, **RELATIVE},
}
SHARES = (0.25, 0.5)


def moved(state, model):
    """‖δ‖/‖w‖ over all weights in scope."""
    pairs = [(state.get(name, model.device), model.get_parameter(name)) for name in state.shapes]
    delta, w = (sum(float(pair[i].detach().float().square().sum()) for pair in pairs) for i in (0, 1))
    return math.sqrt(delta / w)


def main():
    """Prints a line per model and row."""
    names = [subject.model for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="Moreau's steps by the paper's scale and by their own.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--models", nargs="*", default=names, choices=names)
    parser.add_argument("--rows", nargs="*", default=[*ROWS], choices=ROWS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    last, commit = [], State.commit
    State.commit = lambda state: (last.__setitem__(slice(None), [state]), commit(state))[1]  # the δ of a run
    print("| model | steps | 25 % | 50 % | ‖δ‖/‖w‖ |\n|---|---|---:|---:|---:|", flush=True)
    for subject in (subject for subject in SUBJECTS if subject.model in arguments.models):
        folder = str(arguments.shared / "models" / subject.model)
        tokenizer = load_tokenizer(folder)
        calibration, evaluation = subject.documents(arguments.shared)
        for row in arguments.rows:
            found, shares = {share: [] for share in SHARES}, []
            for seed in range(arguments.seeds):
                model = load_model(folder, device="cpu", dtype="float32")
                config = MoreauPrunerConfig(**{"criterion": "moreau", **ROWS[row]}, unit_ratio=SHARES[0], seed=seed)
                last.clear()
                _, scores = MoreauPruner(config, tokenizer=tokenizer).plan(model, calibration)
                shares += [moved(state, model) for state in last]
                shape, config = model_shape(model), config.resolve(model.config)
                for share in SHARES:
                    cut = load_model(folder, device="cpu", dtype="float32")
                    apply_plan(cut, make_plan(scores, shape, replace(config, unit_ratio=share)))
                    found[share].append(perplexity(cut, tokenizer, evaluation, max_segments=100).perplexity)
            share = f"{statistics.mean(shares):.4f}" if shares else ""
            print(f"| {subject.model} | {row} | {cell(found[0.25])} | {cell(found[0.5])} | {share} |", flush=True)


if __name__ == "__main__":
    main()
