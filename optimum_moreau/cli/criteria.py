"""List the criteria, and what works beside them: score, needs, patterns, settings, source; of one, its settings."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..registry import CRITERIA
from . import methods

if TYPE_CHECKING:
    from ..criteria import Criterion

EXAMPLE = "moreau-gs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    methods.add_name(parser, CRITERIA)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns name → its flag, summary, paper, needs, settings with defaults, and what it does for units and masks."""
    if args.name:
        return methods.described(CRITERIA, args.name)
    from ..criteria.block_influence import PAPER, SUMMARY
    from ..masks import REFINEMENTS
    from ..registry import BUDGETS

    found = {name: _row(CRITERIA.get(name)) for name in CRITERIA}
    found["block-influence"] = _companion("--criterion-args layers=", SUMMARY, PAPER, units="layers")
    for name, (summary, paper) in REFINEMENTS.items():
        found[name] = _companion("--mask-args refine=", summary, paper, masks="layer by layer")
    for name in BUDGETS:
        budget = BUDGETS.get(name)
        if budget.paper or budget.measured:
            masks = "unstructured, of the dense model" if budget.of_masks else ""
            found[name] = _companion("--budget", budget.summary, budget.paper, units="heads, channels", masks=masks)
            found[name]["needs"] = ["activations"] if budget.measured else []
    return found


def _companion(flag: str, summary: str, paper: str, units: str = "", masks: str = "") -> dict[str, Any]:
    """What works beside any criterion, or for whole layers instead of it, by a flag of its own."""
    return {
        "flag": flag,
        "summary": summary,
        "paper": paper,
        "needs": ["activations"],
        "defaults": {},
        "units": units,
        "masks": masks,
    }


def _row(criterion: type[Criterion]) -> dict[str, Any]:
    """What there is to know of a criterion, and what it does for each pattern."""
    activations = "activations" in criterion.needs
    units = "heads, channels, layers" if activations else "heads, channels, hidden, layers"
    if criterion.sides == ("in",):
        units += " (by o_proj, down_proj)"
    if criterion.name == "sparsegpt":
        units += " (static)"
    return {
        "flag": "--criterion",
        "summary": criterion.summary,
        "paper": criterion.paper,
        "needs": list(criterion.needs),
        "defaults": _defaults(criterion),
        "units": units,
        "masks": "layer by layer" if criterion.by_layer else "of the dense model",
    }


def _defaults(criterion: type[Criterion]) -> dict[str, Any]:
    """The criterion's own settings that are numbers, as they are where nothing is said."""
    from ..config.settings import settings_of
    from ..criteria import OfGradients

    resolved, common = criterion().resolved(), {one.name for one in settings_of(OfGradients)}
    own = {one.name: getattr(resolved, one.name) for one in settings_of(criterion) if one.name not in common}
    return {name: value for name, value in own.items() if type(value) in (int, float) or value is None}


def show(result: dict[str, Any]) -> str:
    """The same for a reader, as a markdown table of criteria and patterns."""
    if "settings" in result:
        return methods.show(result)
    rows = [["criterion", "score", "needs", "`units`", "`unstructured`, `n:m`", "settings", "source"], ["---"] * 7]
    for name, row in result.items():
        settings = ", ".join(f"{key} {value:g}" for key, value in row["defaults"].items() if value is not None)
        link = f"[{row['paper'].removeprefix('https://')}]({row['paper']})" if row["paper"] else ""
        needs = ", ".join(row["needs"]) or ("scores" if row["flag"] == "--budget" else "weights")
        flag = "" if row["flag"] == "--criterion" else row["flag"]
        flag += "" if not flag or flag.endswith("=") else " "
        rows.append([f"`{flag}{name}`", row["summary"], needs, row["units"], row["masks"], settings, link])
    return methods.table(rows)
