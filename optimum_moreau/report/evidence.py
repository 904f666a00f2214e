"""Reads what `robustness` and `insight` wrote, for a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError, MoreauError, first_line
from ..evaluation.insight import Insight
from ..evaluation.robustness import Agreement

ROBUSTNESS_NAME = "robustness.json"
INSIGHT_NAME = "insight.json"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Evidence:
    """What is known of a base model.

    Attributes:
        model: its name.
        agreements: of plans under small changes; empty if that was not asked.
        insight: what its figures show, if that was asked.
    """

    model: str
    agreements: tuple[Agreement, ...] = ()
    insight: Insight | None = None


def load_evidence(folder: Path) -> Evidence | None:
    """Reads the evidence in a folder; `None` if it holds none.

    Raises:
        CheckpointError: a file is damaged.
    """
    robustness, insight = folder / ROBUSTNESS_NAME, folder / INSIGHT_NAME
    seen = _read(insight, Insight.from_dict) if insight.is_file() else None
    model, agreements = "", tuple[Agreement, ...]()
    if robustness.is_file():
        model, agreements = _read(robustness, _agreements)
    if seen is None and not agreements:
        return None
    return Evidence(model or (seen.model if seen else ""), agreements, seen)


def _agreements(values: Any) -> tuple[str, tuple[Agreement, ...]]:
    return values["model"], tuple(Agreement.from_dict(one) for one in values["agreements"])


def _read(path: Path, make: Callable[[Any], _T]) -> _T:
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, MoreauError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from error
