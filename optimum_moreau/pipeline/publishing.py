"""Publishes a saved folder, and checks what is on the Hub then; without torch, unless what is there is loaded back."""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError
from ..saving.hub import files_to_push, push_folder, verify_published
from .recipe import PushStep


def publish(folder: str, step: PushStep, *, trust_remote_code: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Publishes a folder as a step says, or says what would be sent; returns what was."""
    verify = step.verify and not dry_run
    if verify:  # before anything is sent
        from ..loading import code_may_run

        files_to_push(folder)
        try:
            code_may_run(folder, trust_remote_code)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: cannot be verified: {error}") from error
    how = {name: value for name, value in vars(step).items() if name not in ("repo", "verify")}
    published = push_folder(folder, step.repo, **how, dry_run=dry_run)
    if verify:
        verify_published(published, folder, trust_remote_code=trust_remote_code)
    return {
        "repo": published.repo_id,
        "files": published.files,
        "commit_message": published.commit_message,
        "sent": not dry_run,
        "commit": published.commit,
        "changed": published.changed,
        "url": published.url,
        "verified": verify,
    }
