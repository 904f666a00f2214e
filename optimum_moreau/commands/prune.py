"""Score a model's units on a text, cut the least important, save and verify the smaller model."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from . import dry_run, options, processes

EXAMPLE = "org/model -o pruned --ratio 0.2 --criterion moreau-gs --calibration calibration.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    options.add_output_arguments(parser)
    options.add_calibration_arguments(parser)
    options.add_config_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prunes and saves; returns what was done."""
    config = options.config_from(args)
    from ..checkpoint import base_revision, check_target
    from ..pruner import MoreauPruner

    check_target(args.output, overwrite=args.overwrite)
    if processes.is_first():
        logging.getLogger("optimum_moreau.pruner").setLevel(logging.INFO)  # it says what scoring will take
    model, tokenizer = options.load(args)
    pruner = MoreauPruner(config, tokenizer=tokenizer, revision=base_revision(args.model, args.revision))
    if args.evaluate:
        pruner.evaluate(args.evaluate, model)
    result = pruner.prune(model, args.calibration, **options.calibration_from(args))
    if not processes.is_first():
        return {}
    if args.evaluate:
        pruner.evaluate(args.evaluate)
    verification = pruner.save_pretrained(args.output, overwrite=args.overwrite, card_template=args.card_template)
    return report(result.summary, verification, args.output) | measured(pruner)


def measured(pruner: Any) -> dict[str, Any]:
    """The perplexities of each stage, if any were measured."""
    found = {one.stage: one.value for one in pruner.measurements}
    return {"perplexity": found} if found else {}


def perplexity_line(result: dict[str, Any]) -> list[str]:
    """The same for a reader."""
    stages = ", ".join(f"{stage} {value:.4f}" for stage, value in result.get("perplexity", {}).items())
    return [f"perplexity  {stages}"] if stages else []


def report(summary: Any, verification: Any, output: Any) -> dict[str, Any]:
    """What `prune` and `apply` print as JSON."""
    return {
        "parameters_before": summary.parameters_before,
        "parameters_after": summary.parameters_after,
        "ratio_requested": summary.ratio_requested,
        "ratio_achieved": summary.ratio_achieved,
        "unit_ratio_requested": summary.unit_ratio_requested,
        "unit_ratio_achieved": dict(summary.unit_ratio_achieved),
        "contributions": dict(summary.contributions),
        "adjustments": list(summary.adjustments),
        "criterion": summary.criterion,
        "export": summary.export,
        "verified_max_abs_difference": verification.max_abs_difference,
        "seconds": summary.seconds,
        "peak_memory_bytes": summary.peak_memory_bytes,
        "output": str(output),
    }


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    units = ", ".join(f"{100 * share:.1f} % of {kind}" for kind, share in result["unit_ratio_achieved"].items())
    return "\n".join(
        [
            f"parameters  {result['parameters_before']:,} → {result['parameters_after']:,}"
            f"  (−{100 * result['ratio_achieved']:.2f} %{dry_run.parts(result)}; units in scope: {units})",
            f"export      {result['export']}",
            *(f"note        {line}" for line in result["adjustments"]),
            *perplexity_line(result),
            f"verified    by a reload in a fresh process; logits differ by {result['verified_max_abs_difference']:g}",
            f"time        {result['seconds']:.1f} s for scoring and cutting,"
            f" peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"saved       {result['output']}",
        ]
    )
