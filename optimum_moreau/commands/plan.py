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
    options.add_calibration_arguments(parser)
    options.add_config_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Scores and writes the plan; returns its counts."""
    config = options.config_from(args)
    from ..checkpoint import base_revision, check_file
    from ..plan import removed_parameters
    from ..pruner import MoreauPruner
    from ..units import model_shape

    check_file(args.output, overwrite=args.overwrite)
    model, tokenizer = options.load(args)
    pruner = MoreauPruner(config, tokenizer=tokenizer, revision=base_revision(args.model, args.revision))
    plan, _ = pruner.plan(model, args.calibration, calibration_column=args.calibration_column)
    plan.save(args.output)
    shape = model_shape(model)
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
