"""List the budgets; of one, its settings with their defaults."""

from __future__ import annotations

import argparse
from typing import Any

from ..registry import BUDGETS
from . import methods

EXAMPLE = "owl"

show = methods.show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    methods.add_name(parser, BUDGETS)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what they do, or the settings of one."""
    return methods.described(BUDGETS, args.name) if args.name else methods.listed(BUDGETS)
