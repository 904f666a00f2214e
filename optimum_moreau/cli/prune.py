"""Score a model's units on a text, cut the least important, save and verify the smaller model."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import MoreauPrunerConfig
from ..config.recovery import RecoveryConfig
from ..config.settings import settings_of
from ..errors import ConfigError
from ..pipeline import processes, sizes
from ..pipeline.recipe import PushStep, Recipe, RecoverStep, overridden, read_recipe, section
from . import dry_run, options, push, recover, settings, steps

if TYPE_CHECKING:
    from ..saving.summary import PruningSummary

EXAMPLE = "org/model -o pruned --ratio 0.2 --calibration calibration.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser, required=False)
    options.add_output_arguments(parser, required=False)
    options.add_calibration_arguments(parser)
    settings.add_config_arguments(parser)
    group = parser.add_argument_group("the chain: recovery and publishing afterwards")
    steps.add_step(group, RecoverStep, RecoveryConfig, prefix="recover_", shown=("data", "output"))
    text = "publish the last model as namespace/name on the Hub"
    group.add_argument("--push", dest="push_repo", metavar="REPO", help=text)
    steps.add_step(group, PushStep, prefix="push_", shown=())
    parser.add_argument("--config", metavar="RECIPE", help="file of the whole chain (YAML); flags are over it")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="from config.json alone: sizes, or zeros, memory and time; nothing is written",
    )
    parser.add_argument("--print-config", action="store_true", help="print that file for these flags, and do nothing")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prunes and saves, and goes on to recovery and publishing where they are asked for; returns what was done."""
    if args.dry_run and args.print_config:
        raise ConfigError("--dry-run and --print-config: give one of them")
    values = overridden(read_recipe(args.config) if args.config else {}, _recipe_from(args))
    if args.preset is not None:
        values["prune"] = MoreauPrunerConfig.preset(args.preset, **section(values, "prune")).to_dict()
    recipe = Recipe.from_dict(({"output": ""} if args.dry_run else {}) | values)
    if not args.print_config:
        sizes.check_removes(recipe.prune)
    if args.dry_run:
        loading = {name: getattr(recipe, name) for name in ("model", "revision", "dtype")}
        return dry_run.estimate(argparse.Namespace(**{**vars(args), **loading}), recipe.prune)
    if args.print_config:
        return recipe.to_dict()
    from ..pipeline.chain import Means
    from ..pipeline.chain import run as run_chain

    if processes.is_first():
        logging.getLogger("optimum_moreau.run.scoring").setLevel(logging.INFO)  # it says what scoring will take
    means = Means(args.device, args.trust_remote_code, args.overwrite, args.checkpoint_dir, args.config)
    done = run_chain(recipe, means)
    if not processes.is_first():
        return {}
    later = {step: done[step] for step in ("recovery", "push") if step in done}
    counts = report(done["summary"]) | {"output": done["output"], "steps": done["steps"]} | _zeros(done["output"])
    from ..evaluation.records import perplexities

    return counts | perplexities(done["measurements"]) | later


def _recipe_from(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of a recipe."""
    given = {one.name: getattr(args, one.name, None) for one in settings_of(Recipe)}
    found = {name: value for name, value in given.items() if value is not None}
    sections = {
        "prune": settings.settings_from(args),
        "recover": steps.given(args, RecoverStep, RecoveryConfig, prefix="recover_"),
        "push": steps.given(args, PushStep, prefix="push_"),
    }
    return found | {name: values for name, values in sections.items() if values}


def report(summary: PruningSummary) -> dict[str, Any]:
    """What `prune` and `apply` print as JSON, of a summary that was saved."""
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
        "compensation": _adjusted(summary.compensation),
        "export": summary.export,
        "verified_max_abs_difference": summary.verified_max_abs_difference,
        "seconds": summary.seconds,
        "peak_memory_bytes": summary.peak_memory_bytes,
    }


def _zeros(folder: str) -> dict[str, Any]:
    """What was masked, of a saved folder whose single weights were."""
    from ..masks.summary import SPARSITY_NAME, SparsitySummary

    file = Path(folder).expanduser() / SPARSITY_NAME
    if not file.is_file():
        return {}
    found = SparsitySummary.load(file)
    zeros = {"pattern": found.pattern, "achieved": found.achieved, "of_model": found.of_model, "holds": found.holds}
    zeros |= {"requested": found.requested, "gains": found.gains}
    return {"sparsity": zeros | {"layers": dict(found.by_layer())}}


def show(result: dict[str, Any]) -> str:
    """The same for a reader; of --print-config, the recipe's file."""
    if "scoring" in result:
        return dry_run.show(result)
    if "model" in result:
        return Recipe.from_dict(result).to_yaml().rstrip()
    if "sparsity" in result:
        return _show_zeros(result)
    units = ", ".join(f"{100 * share:.1f} % of {kind}" for kind, share in result["unit_ratio_achieved"].items())
    return "\n".join(
        [
            f"parameters  {result['parameters_before']:,} → {result['parameters_after']:,}"
            f"  (−{100 * result['ratio_achieved']:.2f} %{dry_run.parts(result)}; units in scope: {units})",
            f"export      {result['export']}",
            *(f"note        {line}" for line in result["adjustments"]),
            *_adjusted_line(result["compensation"]),
            *(recover.training_lines(result["recovery"]) if "recovery" in result else []),
            *options.perplexity_line(result),
            f"verified    by a reload in a fresh process; logits differ by {result['verified_max_abs_difference']:g}",
            *_time_line(result),
            f"saved       {result['output']}",
            *([push.show(result["push"])] if "push" in result else []),
        ]
    )


def _adjusted(compensation: Mapping[str, Any]) -> dict[str, Any]:
    """What a compensation did, in short; empty where there was none."""
    if not compensation:
        return {}
    matrices = compensation["matrices"]
    errors = {
        f"mean_{when}": sum(one[when] for one in matrices) / max(len(matrices), 1)
        for when in ("error_before", "error_after")
    }
    source = compensation["calibration"].get("source")
    return {"step": compensation["step"], "source": source, "matrices": len(matrices), **errors}


def _adjusted_line(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    errors = f"mean relative error {found['mean_error_before']:.3g} → {found['mean_error_after']:.3g}"
    return [f"adjusted    {found['matrices']} matrices by {found['step']} on {found['source']}; {errors}"]


def _show_zeros(result: dict[str, Any]) -> str:
    zeros = result["sparsity"]
    holds = "" if zeros["pattern"] == "unstructured" else " holds" if zeros["holds"] else " does not hold"
    asked = "" if abs(zeros["achieved"] - zeros["requested"]) < 5e-4 else f" ({100 * zeros['requested']:g} % asked)"
    return "\n".join(
        [
            f"zeros       {100 * zeros['achieved']:.2f} % of the weights in scope{asked},"
            f" {100 * zeros['of_model']:.2f} %"
            f" of the model's; {zeros['pattern']}{holds}",
            *(f"note        {line}" for line in zeros["gains"]),
            f"export      {result['export']}, shapes as before",
            *(recover.training_lines(result["recovery"]) if "recovery" in result else []),
            *options.perplexity_line(result),
            f"verified    by a reload in a fresh process; logits differ by {result['verified_max_abs_difference']:g}",
            *_time_line(result),
            f"saved       {result['output']}",
            *([push.show(result["push"])] if "push" in result else []),
        ]
    )


def _time_line(result: dict[str, Any]) -> list[str]:
    """What pruning took, if it was done now."""
    if result.get("steps", {}).get("prune") == "skipped":
        return []
    peak = result["peak_memory_bytes"] / 2**30
    return [f"time        {result['seconds']:.1f} s without evaluation and reload, peak memory {peak:.2f} GiB"]
