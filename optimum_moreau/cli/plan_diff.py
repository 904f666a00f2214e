"""Compare two plans for one model: Jaccard overlap of kept and of removed units, per layer and in all."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "plan-bf16.json plan-fp16.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("first", type=Path, metavar="A", help="plan file, or the pruned folder that holds it")
    parser.add_argument("second", type=Path, metavar="B", help="the other one")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns block → overlap of kept and of removed units."""
    from ..planning import PruningPlan, plan_overlap

    overlaps = plan_overlap(PruningPlan.load(args.first), PruningPlan.load(args.second))
    return {where: vars(overlap) for where, overlap in overlaps.items()}


def show(result: dict[str, Any]) -> str:
    """The lines that `plan-diff` prints."""
    rows = [f"{where:24} {row['kept']:8.3f} {row['removed']:8.3f}" for where, row in result.items()]
    return "\n".join([f"{'overlap (Jaccard)':24} {'kept':>8} {'removed':>8}", *rows])
