"""Score a model's units on a text, cut the least important, save and verify the smaller model."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import MoreauPrunerConfig
from ..config.recovery import RecoveryConfig
from ..config.settings import settings_of
from ..errors import ConfigError
from ..pipeline import processes, sizes
from ..pipeline.recipe import PushStep, Recipe, RecoverStep, overridden, read_recipe, section
from . import options, plan, push, recover, settings

EXAMPLE = "org/model -o pruned --ratio 0.2 --calibration calibration.txt"
_DRY_RUN = "from config.json alone: sizes, or zeros, memory and time; nothing is written"
_REPORTED = (
    *("parameters_before", "parameters_after", "ratio_requested", "ratio_achieved", "unit_ratio_requested"),
    *("unit_ratio_achieved", "contributions", "adjustments", "criterion", "compensation", "export"),
    *("verified_max_abs_difference", "seconds", "peak_memory_bytes"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser, required=False)
    options.add_output_arguments(parser, required=False)
    options.add_calibration_arguments(parser)
    settings.add_config_arguments(parser)
    group = parser.add_argument_group("the chain: recovery and publishing afterwards")
    settings.add_step(group, RecoverStep, RecoveryConfig, prefix="recover_", shown=("data", "output"))
    text = "publish the last model as namespace/name on the Hub"
    group.add_argument("--push", dest="push_repo", metavar="REPO", help=text)
    settings.add_step(group, PushStep, prefix="push_", shown=())
    options.add(parser, "--config RECIPE", "file of the whole chain (YAML); flags are over it")
    options.add(parser, "--dry-run", _DRY_RUN)
    options.add(parser, "--print-config", "print that file for these flags, and do nothing")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prunes and saves, and goes on to recovery and publishing where they are asked for; returns what was done."""
    if args.dry_run and args.print_config:
        raise ConfigError("--dry-run and --print-config: give one of them")
    read = read_recipe(args.config) if args.config else {}
    values = overridden(read, _recipe_from(args, section(read, "prune")))
    if args.preset is not None:
        values["prune"] = MoreauPrunerConfig.preset(args.preset, **section(values, "prune")).to_dict()
    recipe = Recipe.from_dict(({"output": ""} if args.dry_run else {}) | values)
    if args.print_config:
        return recipe.to_dict()
    sizes.check_removes(recipe.prune)
    if args.dry_run and recipe.save_dtype:
        raise ConfigError("--save-dtype: leave it out of a dry run, which tells sizes in the dtype of --dtype")
    if args.dry_run:
        loading = {name: getattr(recipe, name) for name in ("model", "revision", "dtype")}
        return plan.dry_run(argparse.Namespace(**{**vars(args), **loading}), recipe.prune)
    from ..evaluation.records import perplexities
    from ..pipeline import chain

    processes.announce("run.scoring")  # it says what scoring will take
    means = chain.Means(args.device, args.trust_remote_code, args.overwrite, args.checkpoint_dir, args.config)
    done = chain.run(recipe, means)
    if not processes.is_first():
        return {}
    later = {step: done[step] for step in ("recovery", "push") if step in done}
    counts = report(done["summary"]) | {"output": done["output"], "steps": done["steps"]} | _zeros(done["output"])
    return counts | perplexities(done["measurements"]) | later


def _recipe_from(args: argparse.Namespace, prune: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags say of a recipe, whose file says `prune` of the config."""
    names = [one.name for one in settings_of(Recipe)]
    found = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    sections = {
        "prune": settings.settings_from(args, prune),
        "recover": settings.step_from(args, RecoverStep, RecoveryConfig, prefix="recover_"),
        "push": settings.step_from(args, PushStep, prefix="push_"),
    }
    return found | {name: values for name, values in sections.items() if values}


def report(summary: Any) -> dict[str, Any]:
    """What `prune` and `apply` print as JSON, of a summary that was saved."""
    return {name: getattr(summary, name) for name in _REPORTED} | {"compensation": _adjusted(summary.compensation)}


def _adjusted(compensation: Mapping[str, Any]) -> dict[str, Any]:
    """What a compensation did, in short; empty where there was none."""
    if not compensation:
        return {}
    matrices = compensation["matrices"]
    found = {"step": compensation["step"], "source": compensation["calibration"].get("source")}
    found["matrices"] = len(matrices)
    for when in ("error_before", "error_after"):
        found[f"mean_{when}"] = sum(one[when] for one in matrices) / max(len(matrices), 1)
    return found | {"held_out": compensation.get("held_out") or {}}  # older folders have none


def _zeros(folder: str) -> dict[str, Any]:
    """What was masked, of a saved folder whose single weights were."""
    from ..masks.summary import SPARSITY_NAME, SparsitySummary

    file = Path(folder).expanduser() / SPARSITY_NAME
    if not file.is_file():
        return {}
    found = SparsitySummary.load(file)
    zeros = {name: getattr(found, name) for name in ("pattern", "achieved", "of_model", "holds", "requested", "gains")}
    return {"sparsity": zeros | {"layers": dict(found.by_layer())}}


def show(result: dict[str, Any]) -> str:
    """The lines that `prune` and `apply` print; of --print-config, the recipe's file."""
    if "scoring" in result:
        return plan.show(result)
    if "model" in result:
        return Recipe.from_dict(result).to_yaml().rstrip()
    rows = _masked_rows(result) if "sparsity" in result else _cut_rows(result)
    rows += recover.rows(result["recovery"]) if "recovery" in result else []
    rows += options.quality_rows(result)
    if result.get("steps", {}).get("prune") != "skipped":
        peak = result["peak_memory_bytes"] / 2**30
        words = f"{result['seconds']:.1f} s without evaluation and reload, peak memory {peak:.2f} GiB"
        rows.append(("time", words))
    rows.append(("saved", result["output"]))
    return options.lines(*rows, *(push.rows(result["push"]) if "push" in result else []))


def _cut_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many parameters are left, and how what stays was adjusted."""
    units = ", ".join(f"{100 * share:.1f} % of {kind}" for kind, share in result["unit_ratio_achieved"].items())
    rows = [options.parameter_row(result, f"; units in scope: {units}"), ("export", result["export"])]
    rows += [("note", line) for line in result["adjustments"]]
    if found := result["compensation"]:
        back = found["held_out"].get("taken_back") and not found["held_out"].get("instead")
        rows.append(("cut alone" if back else "adjusted", _adjusted_words(found)))
    return rows


def _adjusted_words(found: Mapping[str, Any]) -> str:
    errors = f"mean relative error {found['mean_error_before']:.3g} → {found['mean_error_after']:.3g}"
    words, held_out = f"{found['matrices']} matrices by {found['step']} on {found['source']}", found["held_out"]
    if not held_out.get("windows"):
        return f"{words}; {errors}"
    losses = f"loss {held_out['dense']:.3f} before, {held_out['cut']:.3f} cut, {held_out['compensated']:.3f} adjusted"
    taken_back = "taken back, as it raised the loss: " if held_out["taken_back"] else ""
    if held_out.get("instead"):
        taken_back = f"taken back for {held_out['instead']}, of loss {held_out['simpler']:.3f}: "
    return f"{taken_back}{words}; on held-out text {losses}, {errors}"


def _masked_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many weights are zero."""
    zeros = result["sparsity"]
    holds = "" if zeros["pattern"] == "unstructured" else " holds" if zeros["holds"] else " does not hold"
    asked = "" if abs(zeros["achieved"] - zeros["requested"]) < 5e-4 else f" ({100 * zeros['requested']:g} % asked)"
    scope = f"{100 * zeros['achieved']:.2f} % of the weights in scope{asked}"
    notes = [("note", line) for line in zeros["gains"]]
    whole = f"{100 * zeros['of_model']:.2f} % of the model's; {zeros['pattern']}{holds}"
    return [("zeros", f"{scope}, {whole}"), *notes, ("export", f"{result['export']}, shapes as before")]
