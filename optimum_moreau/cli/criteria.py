"""List the criteria, and what works beside them: score, needs, patterns, settings, source."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..criteria import Criterion

EXAMPLE = "--json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments: none."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns name → its flag, summary, paper, needs, settings with defaults, and what it does for units and masks."""
    from ..budgets import BUDGETS
    from ..config.validation import BUDGETS_OF_MASKS
    from ..criteria.block_influence import PAPER, SUMMARY
    from ..masks import REFINEMENTS
    from ..registry import CRITERIA
    from ..scoring.profiles import MEASURED

    found = {name: _row(CRITERIA.get(name)) for name in CRITERIA}
    found["block-influence"] = _companion("--layer-criterion", SUMMARY, PAPER, units="layers")
    for name, (summary, paper) in REFINEMENTS.items():
        found[name] = _companion("--refine", summary, paper, masks="layer by layer")
    for name, (summary, paper) in BUDGETS.items():
        masks = "unstructured, of the dense model" if name in BUDGETS_OF_MASKS else ""
        found[name] = _companion("--budget", summary, paper, units="heads, channels", masks=masks)
        found[name]["needs"] = ["activations"] if name in MEASURED else []
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


def _row(criterion: Criterion) -> dict[str, Any]:
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
        "defaults": dict(criterion.defaults),
        "units": units,
        "masks": "layer by layer" if criterion.elements else "of the dense model",
    }


def show(result: dict[str, Any]) -> str:
    """The same for a reader, as a markdown table of criteria and patterns."""
    rows = [["criterion", "score", "needs", "`units`", "`unstructured`, `n:m`", "settings", "source"], ["---"] * 7]
    for name, row in result.items():
        settings = ", ".join(f"{key} {value:g}" for key, value in row["defaults"].items() if value is not None)
        score = row["summary"].replace("|", "\\|")
        link = f"[{row['paper'].removeprefix('https://')}]({row['paper']})" if row["paper"] else ""
        needs = ", ".join(row["needs"]) or ("scores" if row["flag"] == "--budget" else "weights")
        shown = name if row["flag"] == "--criterion" else f"{row['flag']} {name}"
        rows.append([f"`{shown}`", score, needs, row["units"], row["masks"], settings, link])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
