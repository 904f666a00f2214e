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
    """The same for a reader."""
    head = f"{'model type':16} {'stock export':18} {'custom export':16} notes"
    rows = [f"{name:16} {row['stock']:18} {row['custom']:16} {row['notes']}".rstrip() for name, row in result.items()]
    return "\n".join([head, *rows])
