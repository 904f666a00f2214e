"""Score a model and write which units would stay, as a plan; the model is not changed.

With --dry-run nothing is scored and no weights are read: the sizes before and after, and what scoring would take.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..config import MoreauPrunerConfig
from ..errors import ConfigError
from ..pipeline import processes, sizes
from . import dry_run, options, settings

EXAMPLE = "org/model -o pruning_plan.json --ratio 0.2 --calibration calibration.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="plan to write (.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="from config.json alone: sizes before and after, memory and time of scoring; nothing is written",
    )
    parser.add_argument(
        "--from-scores",
        type=Path,
        metavar="SCORES",
        help="plan again, at another ratio, from pruning_scores.safetensors or the pruned folder that holds it: nothing"
        " is scored, no weights are loaded",
    )
    options.add_calibration_arguments(parser)
    settings.add_config_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Scores, or reads scores, and writes the plan; returns its counts."""
    given = settings.config_from(args)
    if given.masks:
        raise ConfigError(f"--pattern {given.mask.pattern}: a mask has no plan of units; use prune")
    if not args.from_scores:
        sizes.check_removes(given)
    if args.dry_run:
        if args.output or args.from_scores:
            raise ConfigError("--dry-run writes and reads nothing; leave --output and --from-scores out")
        return dry_run.estimate(args, given)
    if args.output is None:
        raise ConfigError("--output: give the plan to write, or --dry-run")
    from ..saving import check_file, check_folder

    check_file(args.output, overwrite=args.overwrite)
    if args.checkpoint_dir is not None:
        check_folder(args.checkpoint_dir)
    inputs = (args.model, args.from_scores, args.calibration)
    with processes.reserved([args.output, args.checkpoint_dir], inputs):
        return _plan(args, given)


def _plan(args: argparse.Namespace, given: MoreauPrunerConfig) -> dict[str, Any]:
    from ..loading import base_revision, load_skeleton
    from ..planning import removed_parameters
    from ..pruner import MoreauPruner
    from ..run.again import planned_again
    from ..run.scoring import planned

    if args.from_scores:
        if args.preset:
            raise ConfigError("--preset: decides how to score, and these scores are made; leave it out")
        where = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
        model = load_skeleton(args.model, dtype=args.dtype, **where)
        run, made = planned_again(model, args.from_scores, settings.settings_from(args))
        sizes.check_removes(run.config)
    else:
        model, tokenizer = options.load(args)
        pruner = MoreauPruner(given, tokenizer=tokenizer, revision=base_revision(args.model, args.revision))
        run = pruner.prepare(model, args.calibration, **options.calibration_from(args), cut=False)
        sizes.check_shape(run.counted, run.config)
        made = planned(run)
    if not processes.is_first():
        return {}
    plan, shape, removed = made.plan, run.shape, removed_parameters(made.plan, run.shape)
    sizes.check_removed(removed, shape, run.config)
    plan.save(args.output)
    left = run.counted.parameters - removed_parameters(plan, run.counted)
    return {
        "parameters_before": shape.parameters,
        "parameters_after": left,
        "ratio_requested": run.config.pruning_ratio,
        "ratio_achieved": (shape.parameters - left) / shape.parameters,
        "contributions": dict(plan.contributions),
        "adjustments": list(plan.adjustments),
        "export": made.export.model_type,
        "compensates_by": run.config.compensation.name,
        "output": str(args.output),
    }


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    if "scoring" in result:
        return dry_run.show(result)
    lines = [
        f"parameters  {result['parameters_before']:,} → {result['parameters_after']:,}"
        f"  (−{100 * result['ratio_achieved']:.2f} %{dry_run.parts(result)})",
        f"export      {result['export']}",
        *(f"note        {line}" for line in result["adjustments"]),
        f"saved       {result['output']}",
    ]
    if result["compensates_by"] != "none":
        lines.append(
            f"next        apply it with the text, which '{result['compensates_by']}' reads: --calibration TEXT"
        )
    return "\n".join(lines)
