"""Score a model and write which units would stay, as a plan; the model is not changed.

With --dry-run nothing is scored and no weights are read: the sizes before and after, and what scoring would take.
"""

import argparse
from pathlib import Path
from typing import Any

from ..config import MoreauPrunerConfig
from ..errors import ConfigError
from ..pipeline import processes, sizes
from . import options, settings

EXAMPLE = "org/model -o pruning_plan.json --ratio 0.2 --calibration calibration.txt"
_DRY_RUN = "from config.json alone: sizes before and after, memory and time of scoring; nothing is written"
_FROM_SCORES = (
    "plan again, at another ratio, from pruning_scores.safetensors or the pruned folder that holds it: nothing"
    " is scored, no weights are loaded"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    options.add(parser, "-o --output FILE", "plan to write (.json)", type=Path)
    options.add(parser, "--overwrite", "replace an existing file")
    options.add(parser, "--dry-run", _DRY_RUN)
    options.add(parser, "--from-scores SCORES", _FROM_SCORES, type=Path)
    options.add_calibration_arguments(parser)
    settings.add_config_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Scores, or reads scores, and writes the plan; returns its counts."""
    given = settings.config_from(args)
    if given.masks:
        raise ConfigError(f"--mask {given.mask.pattern}: a mask has no plan of units; use prune")
    if not args.from_scores:
        sizes.check_removes(given)
    if args.dry_run:
        if args.output or args.from_scores:
            raise ConfigError("--dry-run writes and reads nothing; leave --output and --from-scores out")
        return dry_run(args, given)
    if args.output is None:
        raise ConfigError("--output: give the plan to write, or --dry-run")
    from ..saving import check_file, check_folder

    check_file(args.output, overwrite=args.overwrite)
    if args.checkpoint_dir is not None:
        check_folder(args.checkpoint_dir)
    inputs = (args.model, args.from_scores, args.calibration)
    with processes.reserved([args.output, args.checkpoint_dir], inputs):
        return _plan(args, given)


def dry_run(args: argparse.Namespace, given: MoreauPrunerConfig) -> dict[str, Any]:
    """Sizes before and after, or zeros, memory and time, from config.json alone; refuses to remove nothing."""
    from ..compensation.biases import shape_to_count
    from ..estimate import estimate_pruning
    from ..loading import load_skeleton
    from ..models.units import model_shape

    skeleton = load_skeleton(args.model, dtype=args.dtype, **options.where(args))
    config = given.resolve(skeleton.config)
    found = estimate_pruning(skeleton, config, calibration=args.calibration, device=args.device)
    if not config.masks:
        sizes.check_shape(shape_to_count(skeleton, model_shape(skeleton), config), config)
    return found.to_dict()


def _plan(args: argparse.Namespace, given: MoreauPrunerConfig) -> dict[str, Any]:
    from ..loading import base_revision, load_skeleton
    from ..planning import removed_parameters
    from ..pruner import MoreauPruner
    from ..run.again import planned_again
    from ..run.scoring import planned

    if args.from_scores:
        if args.preset:
            raise ConfigError("--preset: decides how to score, and these scores are made; leave it out")
        model = load_skeleton(args.model, dtype=args.dtype, **options.where(args))
        run, made = planned_again(model, args.from_scores, settings.settings_from(args))
        sizes.check_removes(run.config)
    else:
        model, tokenizer = options.load(args)
        pruner = MoreauPruner(given, tokenizer=tokenizer, revision=base_revision(args.model, args.revision))
        steps = {"calibration_column": args.calibration_column, "checkpoint_dir": args.checkpoint_dir}
        run = pruner.prepare(model, args.calibration, **steps, cut=False, check=sizes.check_shape)
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
    """The lines that `plan` prints."""
    if "scoring" in result:
        from ..estimate.pruning import shown

        return shown(result)
    step = result["compensates_by"]
    following = (
        [("next", f"apply it with the text, which '{step}' reads: --calibration TEXT")] if step != "none" else []
    )
    return options.lines(
        options.parameter_row(result),
        ("export", result["export"]),
        *(("note", line) for line in result["adjustments"]),
        ("saved", result["output"]),
        *following,
    )
