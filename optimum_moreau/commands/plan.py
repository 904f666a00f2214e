"""Score a model and write which units would stay, as a plan; the model is not changed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import options

EXAMPLE = "org/model -o pruning_plan.json --ratio 0.2 --calibration calibration.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="plan to write (.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--from-scores",
        type=Path,
        metavar="FILE",
        help="plan again from pruning_scores.safetensors, at another ratio: nothing is scored, no weights are loaded",
    )
    options.add_calibration_arguments(parser)
    options.add_config_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Scores, or reads scores, and writes the plan; returns its counts."""
    given = options.config_from(args)
    from ..checkpoint import base_revision, check_file, load_shape
    from ..plan import make_plan, removed_parameters
    from ..pruner import MoreauPruner
    from ..scores import UnitScores
    from ..units import model_shape

    check_file(args.output, overwrite=args.overwrite)
    if args.from_scores:
        scores = UnitScores.load(args.from_scores)
        config = options.replanned(scores.origin, args)
        shape = load_shape(args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)
        plan = make_plan(scores, shape, config)
    else:
        model, tokenizer = options.load(args)
        pruner = MoreauPruner(given, tokenizer=tokenizer, revision=base_revision(args.model, args.revision))
        plan, _ = pruner.plan(model, args.calibration, calibration_column=args.calibration_column)
        shape = model_shape(model)
    plan.save(args.output)
    removed = removed_parameters(plan, shape)
    return {
        "parameters_before": shape.parameters,
        "parameters_after": shape.parameters - removed,
        "ratio_requested": plan.config["pruning_ratio"],
        "ratio_achieved": removed / shape.parameters,
        "output": str(args.output),
    }


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    return (
        f"parameters  {result['parameters_before']:,} → {result['parameters_after']:,}"
        f"  (−{100 * result['ratio_achieved']:.2f} %)\nsaved       {result['output']}"
    )
