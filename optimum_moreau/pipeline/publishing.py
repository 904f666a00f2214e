"""Publishes a saved folder, and checks what is on the Hub then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from ..loading import code_may_run
from ..saving.hub import files_to_push, push_folder, verify_published


def publish(folder: str, repo: str, how: Mapping[str, Any], *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Publishes a folder; `how` are fields of STEP; returns what was sent."""
    if verify := how.get("verify", False):  # before anything is sent
        files_to_push(folder)
        try:
            code_may_run(folder, trust_remote_code)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: cannot be verified: {error}") from error
    published = push_folder(folder, repo, **{name: value for name, value in how.items() if name != "verify"})
    if verify:
        verify_published(published, folder, trust_remote_code=trust_remote_code)
    return {
        "repo": published.repo_id,
        "files": published.files,
        "sent": True,
        "commit": published.commit,
        "changed": published.changed,
        "url": published.url,
        "verified": verify,
    }
