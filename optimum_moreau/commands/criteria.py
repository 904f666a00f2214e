"""List the criteria: what each scores, what it needs, for which patterns, which settings it reads, its source."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..criteria import Criterion

EXAMPLE = "--json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments: none."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns name → summary, paper, needs, settings with defaults, and what it does for units and for masks."""
    from ..registry import CRITERIA

    return {name: _row(CRITERIA.get(name)) for name in CRITERIA}


def _row(criterion: Criterion) -> dict[str, Any]:
    """What there is to know of a criterion, and what it does for each pattern."""
    activations = "activations" in criterion.needs
    units = "heads, channels" if activations else "heads, channels, hidden, layers"
    if criterion.sides == ("in",):
        units += " (by o_proj, down_proj)"
    if criterion.name == "sparsegpt":
        units += " (static)"
    return {
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
        link = f"[{row['paper'].removeprefix('https://')}]({row['paper']})"
        needs = ", ".join(row["needs"]) or "weights"
        rows.append([f"`{name}`", score, needs, row["units"], row["masks"], settings, link])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
