"""Reads what `robustness` and `insight` wrote, for a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MoreauError, first_line
from ..evaluation.agreement import Agreement
from ..evaluation.insight import Insight
from ..files import read_json

ROBUSTNESS_NAME = "robustness.json"
INSIGHT_NAME = "insight.json"


@dataclass(frozen=True)
class Evidence:
    """What is known of a base model.

    Attributes:
        model: its name.
        fingerprint: of its weights, as in a plan.
        agreements: of plans under small changes; empty if that was not asked.
        insight: what its figures show, if that was asked.
    """

    model: str
    fingerprint: str
    agreements: tuple[Agreement, ...] = ()
    insight: Insight | None = None


def load_evidence(folder: Path) -> list[Evidence]:
    """Reads the evidence in a folder; nothing if it holds none.

    Raises:
        CheckpointError: a file is damaged.
    """
    makers: dict[str, Callable[[Any], Evidence]] = {ROBUSTNESS_NAME: _of_robustness, INSIGHT_NAME: _of_insight}
    return [_read(folder / name, make) for name, make in makers.items() if (folder / name).is_file()]


def _of_robustness(values: Any) -> Evidence:
    agreements = tuple(Agreement.from_dict(one) for one in values["agreements"])
    return Evidence(str(values["model"]), str(values["fingerprint"]), agreements)


def _of_insight(values: Any) -> Evidence:
    insight = Insight.from_dict(values)
    return Evidence(insight.model, insight.fingerprint, insight=insight)


def _read(path: Path, make: Callable[[Any], Evidence]) -> Evidence:
    try:
        return make(read_json(path, "what `robustness` or `insight` wrote"))
    except (KeyError, TypeError, MoreauError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else first_line(error)
        raise CheckpointError(f"{path}: cannot be read ({reason}); make it anew") from error
