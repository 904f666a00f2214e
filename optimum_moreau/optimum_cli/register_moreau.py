"""`optimum-cli moreau VERB`: found by optimum in the namespace folder `optimum.commands.register`."""

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from optimum_moreau.cli import VERBS, execute, prepare


def _command(verb: str, text: str) -> CommandInfo:
    class Verb(BaseOptimumCLICommand):
        @classmethod
        def parse_args(cls, parser: ArgumentParser) -> None:
            prepare(verb, parser)

        def run(self) -> None:
            if code := execute(verb, self.args):
                sys.exit(code)

    return CommandInfo(name=verb, help=text, subcommand_class=Verb)


class MoreauCommand(BaseOptimumCLICommand):
    """The root of the verbs."""

    COMMAND = CommandInfo(name="moreau", help="Structured pruning of LLaMA-family language models.")
    SUBCOMMANDS = tuple(_command(verb, text) for verb, text in VERBS.items())


REGISTER_COMMANDS = [MoreauCommand]
