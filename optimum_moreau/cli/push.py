"""Publish a saved folder on the Hub, in one commit; the card that is there is merged with the folder's."""

from __future__ import annotations

import argparse
from typing import Any

from ..pipeline.recipe import PushStep
from . import options, steps

EXAMPLE = "pruned me/model-pruned --private"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="folder that prune, apply or recover wrote")
    parser.add_argument("repo", metavar="REPO", help="namespace/name on the Hub; made where it is missing")
    steps.add_step(parser.add_argument_group("how"), PushStep)
    options.add_trust_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Publishes; returns what was sent. The token is the one that is logged in, or HF_TOKEN."""
    step = PushStep.from_dict(steps.given(args, PushStep))
    return step.publish(args.folder, trust_remote_code=args.trust_remote_code, dry_run=args.dry_run)


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    from ..config.quantities import words_for_bytes

    files, repo = result["files"], result["repo"]
    if not result["sent"]:
        head = f"would send to {repo}, as '{result['commit_message']}':"
        return "\n".join([head, *(f"  {name}  {words_for_bytes(size)}" for name, size in files.items())])
    sent = f"{len(files)} files to {result['url']}"
    lines = [f"sent        {sent if result['changed'] else f'nothing: {repo} holds these {len(files)} files already'}"]
    if result["verified"]:
        lines.append("verified    downloaded again, every file is what was sent; loads in a fresh process")
    return "\n".join(lines)
