"""Publish a saved folder on the Hub, in one commit; the card that is there is merged with the folder's."""

import argparse
from typing import Any

from ..config.quantities import words_for_bytes
from ..pipeline.recipe import PushStep
from . import options, settings

EXAMPLE = "pruned me/model-pruned --private"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add(parser, "folder FOLDER", "folder that prune, apply or recover wrote")
    options.add(parser, "repo REPO", "namespace/name on the Hub; made where it is missing")
    settings.add_step(parser.add_argument_group("how"), PushStep)
    options.add_trust_argument(parser)
    options.add(parser, "--dry-run", "list what would be sent, and send nothing")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Publishes; returns what was sent. The token is the one that is logged in, or HF_TOKEN."""
    step = PushStep.from_dict(settings.step_from(args, PushStep))
    return step.publish(args.folder, trust_remote_code=args.trust_remote_code, dry_run=args.dry_run)


def show(result: dict[str, Any]) -> str:
    """The lines that `push` prints."""
    if result["sent"]:
        return options.lines(*rows(result))
    head = f"would send to {result['repo']}, as '{result['commit_message']}':"
    return "\n".join([head, *(f"  {name}  {words_for_bytes(size)}" for name, size in result["files"].items())])


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What was sent, for a reader."""
    count = len(result["files"])
    nothing = f"nothing: {result['repo']} holds these {count} files already"
    sent = ("sent", f"{count} files to {result['url']}" if result["changed"] else nothing)
    words = "downloaded again, every file is what was sent; loads in a fresh process"
    return [sent, ("verified", words)] if result["verified"] else [sent]
