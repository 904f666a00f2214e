"""The config's file: in a folder, and on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ..errors import CheckpointError, ConfigError
from ..files import read_json, write_text
from ..files.temporary import reason

CONFIG_NAME = "moreau_pruner_config.json"


class ConfigFile:
    """What is kept as `moreau_pruner_config.json`."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the values that the file holds."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a config from these values."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Writes `moreau_pruner_config.json` into a folder (made if missing); returns the file.

        Raises:
            CheckpointError: it cannot be written.
        """
        place = Path(save_directory)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{place}: cannot be made ({reason(error)})") from error
        write_text(place / CONFIG_NAME, self._text())
        return place / CONFIG_NAME

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Reads `moreau_pruner_config.json` from a local folder or a Hub repository.

        Raises:
            ConfigError: the file is missing, is not JSON, or holds an unknown key.
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
        return cls.from_dict(read_json(path, "a pruning config", ConfigError))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload pruning config",
        create_pr: bool = False,
    ) -> str:
        """Uploads the config to a Hub repository (made if missing); returns the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        options: dict[str, Any] = {"revision": revision, "commit_message": commit_message, "create_pr": create_pr}
        file = self._text().encode()
        return api.upload_file(path_or_fileobj=file, path_in_repo=CONFIG_NAME, repo_id=repo_id, **options).commit_url

    def _text(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"
