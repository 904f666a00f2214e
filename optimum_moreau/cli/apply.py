"""Apply a plan to a fresh copy of its base model, save and verify the result."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..pipeline import processes
from . import options, prune

EXAMPLE = "pruning_plan.json org/model -o pruned --calibration calibration.txt"
show = prune.show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan file, or the pruned folder that holds it")
    options.add_model_arguments(parser)
    options.add_output_arguments(parser)
    options.add_calibration_arguments(parser, scores=False)
    parser.add_argument(
        "--export", choices=("auto", "stock", "custom"), help="class of the result (default: the plan's)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Cuts and saves; returns what was done."""
    inputs = (args.model, args.plan, args.calibration, args.evaluate, args.card_template)
    with processes.reserved([args.output], inputs):
        return _apply(args)


def _apply(args: argparse.Namespace) -> dict[str, Any]:
    from ..planning import PruningPlan
    from ..pruner import MoreauPruner
    from ..run.measuring import EvaluationText
    from ..saving import check_target
    from ..saving.card import check_template

    check_target(args.output, overwrite=args.overwrite)
    check_template(args.card_template)
    plan = PruningPlan.load(args.plan)
    model, tokenizer = options.load(args)
    pruner = MoreauPruner(tokenizer=tokenizer, trust_remote_code=args.trust_remote_code)
    if args.evaluate:
        text = EvaluationText(args.evaluate, tokenizer)
        pruner.evaluate(model, text)
    result = pruner.apply(model, plan, args.calibration, calibration_column=args.calibration_column, export=args.export)
    if not processes.is_first():
        return {}
    if args.evaluate:
        pruner.evaluate(text)
    verification = pruner.save_pretrained(args.output, overwrite=args.overwrite, card_template=args.card_template)
    summary = replace(result.summary, verified_max_abs_difference=verification.max_abs_difference)
    from ..evaluation.records import perplexities

    return prune.report(summary) | {"output": args.output} | perplexities(pruner.measurements)
