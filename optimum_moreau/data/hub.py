"""Datasets of the Hub: `hub:id[:config[:split[:column]]]` → records."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, first_line, quiet

logger = logging.getLogger(__name__)

HUB_PREFIX = "hub:"
_PATIENCE = 10  # seconds that the Hub may take to answer


def read_hub(source: str, seed: int | None, limit: int | None) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """The records of a dataset, and the column that its name gives; arguments and errors as for `read_records`."""
    from datasets import load_dataset

    dataset_id, config, split, column = (source.removeprefix(HUB_PREFIX).split(":") + [""] * 4)[:4]
    try:
        with _asked_once(dataset_id), quiet("datasets"), quiet("huggingface_hub"):
            rows = load_dataset(dataset_id, config or None, split=split or "train", streaming=limit is not None)
            if limit is None:
                return rows, column or None
            rows = rows if seed is None else rows.shuffle(seed=seed, buffer_size=limit)
            found = list(islice(rows, limit))
    except Exception as error:  # datasets raises many types; each is "this dataset cannot be had"
        raise DataError(f"{source}: cannot be loaded ({_reason(error)})") from error
    if seed is None and len(found) == limit:
        logger.warning("%s: only its first %s documents are read", source, f"{limit:,}")
    return found, column or None


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    if "OfflineModeIsEnabled" in words:
        return "it is not in the cache, and the Hub cannot be reached"
    if words.startswith("Config name is missing"):
        known = words.partition("available configs:")[2].partition(" Example")[0]
        return f"give one of its configs, hub:id:config:{known}"
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _asked_once(dataset_id: str) -> Iterator[None]:
    """Where the Hub cannot be reached, datasets does not ask it again and again within the block."""
    import datasets
    from huggingface_hub import constants

    if Path(dataset_id).exists() or _asked(dataset_id)[0]:
        yield
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _asked(dataset_id: str) -> tuple[bool, str | None]:
    """Whether the Hub says anything at all of a dataset, be it that there is none; and its commit."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with quiet("huggingface_hub"):
            return True, HfApi().dataset_info(dataset_id, timeout=_PATIENCE).sha
    except (HfHubHTTPError, HFValidationError):
        return True, None
    except (httpx2.TransportError, OSError):
        return False, None


def dataset_commit(source: str) -> str | None:
    """The commit of `hub:id[…]` that would be read; `None` where the Hub cannot be asked."""
    return _asked(source.removeprefix(HUB_PREFIX).split(":")[0])[1]
