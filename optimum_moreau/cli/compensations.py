"""List the compensations; of one, its settings with their defaults."""

from __future__ import annotations

import argparse
from typing import Any

from ..registry import COMPENSATIONS
from . import methods

EXAMPLE = "refit"

show = methods.show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    methods.add_name(parser, COMPENSATIONS)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what they do, or the settings of one."""
    return methods.described(COMPENSATIONS, args.name) if args.name else methods.listed(COMPENSATIONS)
