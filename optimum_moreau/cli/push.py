"""Publish a saved folder on the Hub, in one commit; the card that is there is merged with the folder's."""

from __future__ import annotations

import argparse
from typing import Any

from . import options

EXAMPLE = "pruned me/model-pruned --private"


STEP: options.Fields = {  # the fields of PushStep
    "private": (None, bool, None, "where the repository is made: private"),
    "revision": (None, str, "BRANCH", "branch, made where it is missing"),
    "create_pr": (None, bool, None, "as a pull request"),
    "commit_message": (None, str, "TEXT", "of the commit"),
    "overwrite_card": (None, bool, None, "replace the card there, instead of merging"),
    "verify": (None, bool, None, "download it again into an empty cache, compare, and load it in a fresh process"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="folder that prune, apply or recover wrote")
    parser.add_argument("repo", metavar="REPO", help="namespace/name on the Hub; made where it is missing")
    options.add_fields(parser.add_argument_group("how"), STEP)
    options.add_trust_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Publishes; returns what was sent. The token is the one that is logged in, or HF_TOKEN."""
    from ..saving.hub import check_name, files_to_push

    if args.dry_run:
        check_name(args.repo)
        return {"repo": args.repo, "files": files_to_push(args.folder), "sent": False}
    from ..pipeline.publishing import publish

    return publish(args.folder, args.repo, options.given(args, STEP), trust_remote_code=args.trust_remote_code)


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    from ..config.quantities import words_for_bytes

    files = [f"  {name}  {words_for_bytes(size)}" for name, size in result["files"].items()]
    if not result["sent"]:
        return "\n".join([f"would send to {result['repo']}:", *files])
    checked = (
        ["verified    downloaded again, every file is what was sent; loads in a fresh process"]
        if result["verified"]
        else []
    )
    if not result["changed"]:
        return "\n".join([f"sent        nothing: {result['repo']} holds these {len(files)} files already", *checked])
    return "\n".join([f"sent        {len(files)} files to {result['url']}", *checked])
