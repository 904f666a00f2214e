"""Apply a plan to a fresh copy of its base model, save and verify the result."""

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
    options.add(parser, "plan PLAN", "plan file, or the pruned folder that holds it", type=Path)
    options.add_model_arguments(parser)
    options.add_output_arguments(parser)
    options.add_calibration_arguments(parser, scores=False)
    text = "class of the result (default: the plan's)"
    parser.add_argument("--export", choices=("auto", "stock", "custom"), help=text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Cuts and saves; returns what was done."""
    from ..evaluation.records import perplexities
    from ..planning import PruningPlan
    from ..pruner import MoreauPruner
    from ..run.measuring import EvaluationText
    from ..run.saving import check_castable
    from ..saving import check_target
    from ..saving.card import check_template

    inputs = (args.model, args.plan, args.calibration, args.evaluate, args.card_template)
    with processes.reserved([args.output], inputs):
        check_target(args.output, overwrite=args.overwrite)
        check_template(args.card_template)
        plan = PruningPlan.load(args.plan)
        model, tokenizer = options.load(args)
        check_castable(model, args.save_dtype)
        pruner = MoreauPruner(tokenizer=tokenizer, trust_remote_code=args.trust_remote_code)
        if args.evaluate:
            text = EvaluationText(args.evaluate, tokenizer, bos=args.bos or "auto")
            pruner.evaluate(model, text)
        column = args.calibration_column
        result = pruner.apply(model, plan, args.calibration, calibration_column=column, export=args.export)
        if not processes.is_first():
            return {}
        pruner.cast(args.save_dtype)
        if args.evaluate:
            pruner.evaluate(text)
        verification = pruner.save_pretrained(args.output, overwrite=args.overwrite, card_template=args.card_template)
        summary = replace(result.summary, verified_max_abs_difference=verification.max_abs_difference)
        return prune.report(summary) | {"output": args.output} | perplexities(pruner.measurements)
