"""List the model families that can be pruned, and what their pruned models can be exported as."""

import argparse
from typing import Any

EXAMPLE = "--json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments: none."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns model type → exports and notes."""
    from ..models.families import FAMILIES

    return {
        name: {
            "stock": " or ".join(filter(None, (row.base_type, row.stock_alternative))),
            "custom": row.custom_type,
            "grouped_queries": True,  # a unit is a KV group in every family
            "biases": row.biases,
            "norms": row.norms + (", q and k" if row.qk_norms else ""),
            "hidden": not row.hidden_refusal,
            "notes": row.notes,
        }
        for name, row in FAMILIES.items()
    }


def show(result: dict[str, Any]) -> str:
    """What `families` prints, and docs/families.md shows: a markdown table of the stock types, then what is refused."""
    from ..models.families import FAMILIES, REFUSED

    columns = ("model type", "stock export", "own type", "GQA", "biases", "norms", "hidden channels", "notes")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in result.items():
        if name != row["custom"]:
            words = (row["stock"], f"`{row['custom']}`", "yes", row["biases"], row["norms"])
            lines.append(f"| `{name}` | {' | '.join(words)} | {'yes' if row['hidden'] else 'no'} | {row['notes']} |")
    reasons: dict[str, list[str]] = {}
    for name, family in FAMILIES.items():
        if family.hidden_refusal and name == family.base_type:
            reasons.setdefault(family.hidden_refusal, []).append(f"`{name}`")
    lines += ["", *(f"- hidden channels of {', '.join(names)} are refused: {why}" for why, names in reasons.items())]
    return "\n".join([*lines, *(f"- `{name}` is refused: {reason}" for name, reason in REFUSED.items())])
