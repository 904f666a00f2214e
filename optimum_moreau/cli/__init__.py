"""The command line: one file per verb, parsing and printing only."""

from .cli import VERBS, execute, main, prepare

__all__ = ["VERBS", "execute", "main", "prepare"]
