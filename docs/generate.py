"""Writes into the pages of this folder what commands print: between `<!-- generated: COMMAND -->` and `<!-- end -->`.

python docs/generate.py
"""

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

PAGES = Path(__file__).parent
GENERATED = re.compile(r"(<!-- generated: optimum-moreau (.+?) -->\n).*?(<!-- end -->)", re.S)


def printed(command: str) -> str:
    """What a verb that lists methods prints.

    Args:
        command: the verb, and a name if there is one.
    """
    verb, *name = shlex.split(command)
    module = import_module(f"optimum_moreau.cli.{verb}")
    return module.show(module.run(argparse.Namespace(name=name[0] if name else None)))


def generated(page: str) -> str:
    """The page, with each generated part as the code has it now."""
    return GENERATED.sub(lambda part: f"{part[1]}\n{printed(part[2])}\n\n{part[3]}", page)


if __name__ == "__main__":
    for file in sorted(PAGES.glob("*.md")):
        file.write_text(generated(file.read_text(encoding="utf-8")), encoding="utf-8")
