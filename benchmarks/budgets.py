"""Perplexity of every budget of units on the shared real models.

    python benchmarks/budgets.py [--shared ../shared] [--seeds 3] [--segments 100] [--criterion taylor]
        [--models NAME …] [--budgets NAME …] [--outliers M]

20 % and 50 % of the parameters go, all layers in scope, with and without 1 % of the lowest-scored channels protected;
with --outliers, with and without the channels protected that hand on more than M times the mean of their block.
A seed draws the calibration windows. Every budget is planned from the same scores; the units are silenced in memory,
which computes what the cut model does (tests/test_insight.py). Prints a markdown table: mean ± standard deviation,
and the spread of what MLPs keep over layers, least to most, of the first seed.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.data.windows import load_calibration
from optimum_moreau.evaluation import segment
from optimum_moreau.evaluation.perplexity import measure_segments
from optimum_moreau.evaluation.silencing import silenced
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.registry import BUDGETS as REGISTRY
from optimum_moreau.scoring.profiles import is_outlier
from optimum_moreau.scoring.scores import UnitScores, score_units
from results import SUBJECTS, Subject, cell

BUDGETS = tuple(REGISTRY)
MEASURED = tuple(name for name in BUDGETS if REGISTRY.get(name).measured)
RATIOS, PROTECTED = (0.2, 0.5), ({}, {"protect": 0.01})


def measure(subject: Subject, arguments: argparse.Namespace) -> list[str]:
    """Rows of the table of one model."""
    protections = ({}, {"protect_outliers": arguments.outliers}) if arguments.outliers else PROTECTED
    folder = arguments.shared / "models" / subject.model
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    calibration, evaluation = subject.documents(arguments.shared)
    segments = segment(evaluation, tokenizer, 128)[: arguments.segments]
    shape = model_shape(model)
    scope = {"attention_layers": (0, shape.depth), "mlp_layers": (0, shape.depth)}
    found: dict[tuple, list[float]] = {}
    spread: dict[tuple, str] = {}
    seconds = dict.fromkeys(BUDGETS, 0.0)
    for seed in range(arguments.seeds):
        settings = {"criterion": arguments.criterion, "seed": seed, "pruning_ratio": RATIOS[0], **scope}
        read = load_calibration(calibration, tokenizer, samples=10, sequence_length=128, seed=seed)
        scores = UnitScores({})
        for budget in ("uniform", *MEASURED):
            start = time.perf_counter()
            config = MoreauPrunerConfig(budget=budget, protect_outliers=arguments.outliers, **settings)
            measured = score_units(model, shape, read.tokens, config.resolve(model.config))
            scores = UnitScores({**scores.values, **measured.values})
            seconds[budget] += time.perf_counter() - start
        if arguments.outliers:
            units = [block for block in shape.blocks if block.kind == "mlp"]
            counts = [int(is_outlier(scores.values, block, arguments.outliers).sum()) for block in units]
            print(f"{subject.model}, draw {seed}: outliers of each layer's channels {counts}", flush=True)
        for budget in arguments.budgets:
            for ratio in RATIOS:
                for protection in protections:
                    changes = {"budget": budget, "pruning_ratio": ratio, **protection}
                    config = MoreauPrunerConfig(**{**settings, **changes}).resolve(model.config)
                    plan = make_plan(scores, shape, config)
                    with silenced(model, shape, plan):
                        quality = measure_segments(model, segments).perplexity
                    key = (budget, ratio, *protection)
                    found.setdefault(key, []).append(quality)
                    kept = [len(layer["mlp"].kept) / layer["mlp"].total for layer in plan.layers.values()]
                    spread.setdefault(key, f"{min(kept):.2f}-{max(kept):.2f}")
    dense = measure_segments(model, segments).perplexity
    rows = [f"\n{subject.model}, {subject.text}: {dense:.2f} whole\n"]
    words = f"{arguments.outliers:g} × the mean protected" if arguments.outliers else "1 % protected"
    columns = [(ratio, *protection) for ratio in RATIOS for protection in protections]
    head = [f"{ratio:.0%}" + (f", {words}" if protection else "") for ratio, *protection in columns]
    rows += ["| budget | " + " | ".join(head) + " | MLP kept at 20 %, 50 % | scoring |", "|---" * (len(head) + 3) + "|"]
    for budget in arguments.budgets:
        cells = [cell(found[budget, *column]) for column in columns]
        kept = ", ".join(spread[budget, ratio] for ratio in RATIOS)
        took = f"{seconds[budget if budget in MEASURED else 'uniform'] / arguments.seeds:.1f} s"
        rows.append(f"| {budget} | {' | '.join(cells)} | {kept} | {took} |")
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--segments", type=int, default=100)
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--budgets", nargs="*", default=BUDGETS)
    parser.add_argument("--outliers", type=float, metavar="M")
    parser.add_argument("--models", nargs="*", default=[subject.model for subject in SUBJECTS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    for subject in SUBJECTS:
        if subject.model in arguments.models:
            print("\n".join(measure(subject, arguments)), flush=True)


if __name__ == "__main__":
    main()
