"""List the model families that can be pruned, and what their pruned models can be exported as."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLE = "--json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments: none."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns model type → exports and notes."""
    from ..families import FAMILIES

    return {
        name: {
            "stock": " or ".join(filter(None, (row.base_type, row.stock_alternative))),
            "custom": row.custom_type,
            "notes": row.notes,
        }
        for name, row in FAMILIES.items()
    }


def show(result: dict[str, Any]) -> str:
    """The same for a reader, and for the README: a markdown table of the stock types, then what is refused."""
    from ..families import REFUSED

    lines = ["| model type | stock export | own type | notes |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {row['stock']} | `{row['custom']}` | {row['notes']} |"
        for name, row in result.items()
        if name != row["custom"]
    ]
    return "\n".join([*lines, "", *(f"- `{name}` is refused: {reason}" for name, reason in REFUSED.items())])
