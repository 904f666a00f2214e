"""The config's file: in a folder, and on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..files import read_json, write_text
from ..files.temporary import reason

CONFIG_NAME = "moreau_pruner_config.json"


def write_config(values: Mapping[str, Any], folder: str | Path) -> Path:
    """Writes a config's values into a folder, which is made if missing; returns the file.

    Raises:
        CheckpointError: it cannot be written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be made ({reason(error)})") from error
    write_text(place / CONFIG_NAME, _text(values))
    return place / CONFIG_NAME


def read_config(name_or_path: str | Path, *, revision: str | None = None, token: str | None = None) -> Any:
    """Reads a config's values from a local folder or a Hub repository.

    Raises:
        ConfigError: the file is missing, or is not JSON.
    """
    path = Path(name_or_path) / CONFIG_NAME
    if not Path(name_or_path).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

        try:
            path = Path(hf_hub_download(str(name_or_path), CONFIG_NAME, revision=revision, token=token))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            raise ConfigError(f"{name_or_path}: no folder here, and no {CONFIG_NAME} on the Hub") from error
    if not path.is_file():
        raise ConfigError(f"{name_or_path}: holds no {CONFIG_NAME}")
    return read_json(path, "a pruning config", ConfigError)


def push_config(
    values: Mapping[str, Any], repo_id: str, *, private: bool | None, token: str | None, **options: Any
) -> str:
    """Uploads a config's values to a Hub repository (made if missing); returns the commit's address.

    Args:
        values: of the config.
        repo_id: `namespace/name`.
        private: whether the repository is made private.
        token: of the Hub.
        **options: of `HfApi.upload_file`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    data = _text(values).encode()
    commit = api.upload_file(path_or_fileobj=data, path_in_repo=CONFIG_NAME, repo_id=repo_id, **options)
    return commit.commit_url


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
