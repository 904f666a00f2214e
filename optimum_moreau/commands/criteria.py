"""List the criteria: what each scores, where it comes from, what it needs, which settings it reads."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLE = "--json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments: none."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns name → summary, paper, needs, settings with defaults."""
    from ..registry import CRITERIA

    rows = {name: CRITERIA.get(name) for name in CRITERIA}
    return {
        name: {
            "summary": row.summary,
            "paper": row.paper,
            "needs": list(row.needs),
            "defaults": dict(row.defaults),
        }
        for name, row in rows.items()
    }


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    lines = []
    for name, row in result.items():
        settings = ", ".join(f"{key}={value}" for key, value in row["defaults"].items() if value is not None)
        needs = ", ".join(row["needs"]) or "nothing"
        lines.append(f"{name:14} {row['summary']}\n{'':14} needs {needs}; {row['paper']}")
        if settings:
            lines.append(f"{'':14} {settings}")
    return "\n".join(lines)
