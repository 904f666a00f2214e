"""`optimum-cli moreau VERB`: found by optimum in the namespace folder `optimum.commands.register`."""

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from optimum_moreau.cli import VERBS, execute, prepare


class _VerbCommand(BaseOptimumCLICommand):
    """One verb; its subclasses below carry the verb's name."""

    verb = ""

    @classmethod
    def parse_args(cls, parser: ArgumentParser) -> None:
        """Adds the verb's arguments to the parser that optimum made."""
        prepare(cls.verb, parser)

    def run(self) -> None:
        """Runs the verb; leaves with its exit code where that is not 0."""
        if code := execute(self.verb, self.args):
            sys.exit(code)


class MoreauCommand(BaseOptimumCLICommand):
    """The root of the verbs."""

    COMMAND = CommandInfo(name="moreau", help="Structured pruning of LLaMA-family language models.")
    SUBCOMMANDS = tuple(
        CommandInfo(
            name=verb, help=text, subcommand_class=type(f"{verb.title()}Command", (_VerbCommand,), {"verb": verb})
        )
        for verb, text in VERBS.items()
    )


REGISTER_COMMANDS = [MoreauCommand]
