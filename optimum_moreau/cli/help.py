"""`--help` on a screen and a half: a short usage, one line a flag; what few people set is listed by `--help-all`."""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import Any

HELP_ALL = "--help-all"


def rarely(text: str) -> str:
    """The help of a flag that only `--help-all` lists."""
    return text if HELP_ALL in sys.argv else argparse.SUPPRESS


def add_help_all(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that lists every flag."""
    parser.add_argument(HELP_ALL, action=_HelpAll, help="list every flag, those of methods' settings too")


def shorten(parser: argparse.ArgumentParser) -> None:
    """Gives a parser, with all its arguments, a usage of one line and a wide list."""
    names = [
        f"[{one.metavar or one.dest}]" if one.nargs == "?" else str(one.metavar or one.dest)
        for one in parser._get_positional_actions()
    ]
    required = [f"{one.option_strings[0]} {one.metavar}" for one in parser._get_optional_actions() if one.required]
    parser.usage = " ".join([parser.prog, *names, *required, "[options]"]).replace("%", "%%")
    parser.formatter_class = _Wide


class _Wide(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=32, width=max(shutil.get_terminal_size((120, 24)).columns - 2, 118))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """One value for all names of a flag: `-o, --output FOLDER`."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Any, dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.print_help()
        parser.exit()
