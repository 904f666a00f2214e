"""Publish a saved folder on the Hub, in one commit; the card that is there is merged with the folder's."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLE = "pruned me/model-pruned --private"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="folder that prune, apply or recover wrote")
    parser.add_argument("repo", metavar="REPO", help="namespace/name on the Hub; made where it is missing")
    parser.add_argument("--private", action="store_true", default=None, help="where it is made: private")
    parser.add_argument("--revision", help="branch, made where it is missing")
    parser.add_argument("--create-pr", action="store_true", help="as a pull request")
    parser.add_argument("--commit-message", metavar="TEXT", help="of the commit")
    parser.add_argument("--overwrite-card", action="store_true", help="replace the card there, instead of merging")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    parser.add_argument("--verify", action="store_true", help="download it again into an empty cache, and compare")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Publishes; returns what was sent. The token is the one that is logged in, or HF_TOKEN."""
    from ..hub import files_to_push, push_folder, verify_published

    if args.dry_run:
        return {"repo": args.repo, "files": files_to_push(args.folder), "sent": False}
    published = push_folder(
        args.folder,
        args.repo,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.commit_message,
        overwrite_card=args.overwrite_card,
    )
    if args.verify:
        verify_published(published, args.folder)
    return {
        "repo": published.repo_id,
        "files": published.files,
        "sent": True,
        "commit": published.commit,
        "url": published.url,
        "verified": args.verify,
    }


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    from ..config.quantities import words_for_bytes

    files = [f"  {name}  {words_for_bytes(size)}" for name, size in result["files"].items()]
    if not result["sent"]:
        return "\n".join([f"would send to {result['repo']}:", *files])
    checked = ["verified    downloaded again, every file is what was sent"] if result["verified"] else []
    return "\n".join([f"sent        {len(files)} files to {result['url']}", *checked])
