"""Presets: settings to begin with, for the fields that are not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import CRITERIA
from .flat import unflattened
from .methods import made
from .validation import UNITS

PRESETS = ("best", "fast", "paper", "plain")
# What results/yardstick.md found to keep most of a real model without tuning. A search does not pay there.
BEST: dict[str, Any] = {
    "criterion": "surgeon",
    "calibration_samples": 256,
    "budget": {"name": "uniform", "heads": 0.0},
    "compensation": "refit",
}
# What one pass over little text finds.
FAST: dict[str, Any] = {**BEST, "criterion": "wanda", "calibration_samples": 128, "compensation": "none"}
MEASURED = {"best": BEST, "fast": FAST}
_HIDDEN = "taylor"  # scores hidden channels, which surgeon does not
_FEWEST = 10  # windows of a criterion that takes many passes over each


def measured_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The preset `best` or `fast` with the given fields, without what these rule out.

    Hidden channels are scored by `taylor`, which, as any other criterion of gradients, averages the importances of
    single samples. Masks, which have neither a budget of these nor a compensation, and the published code, which is
    there to be compared with the paper, have nothing of it. Of a criterion that takes several passes over each window
    there are so many fewer windows. What is no criterion is left for validation.

    Args:
        name: of the preset.
        given: fields of `MoreauPrunerConfig`, and settings of its methods beside them.
    """
    targets = given.get("targets") or UNITS
    known = isinstance(targets, (list, tuple))
    best = dict(MEASURED[name]) | ({"criterion": _HIDDEN} if known and "hidden" in targets else {})
    if given.get("mask") is not None or given.get("pattern", "units") not in ("units", None) or given.get("released"):
        return dict(given)
    given = unflattened(given, best)
    asked = given.get("criterion", best["criterion"])
    criterion = _criterion(asked)
    if getattr(criterion, "released", False):
        return dict(given)
    if criterion is not None:
        best["calibration_samples"] = max(best["calibration_samples"] // criterion.passes_each, _FEWEST)
        if hasattr(criterion, "reduction") and not _says(asked, "reduction"):
            asked = {**_as_mapping(asked), "reduction": "importance"}
    return {**best, **given, "criterion": asked}


def _criterion(asked: Any) -> Any:
    """The criterion that is meant, or None where validation will say that there is none."""
    name = asked.get("name") if isinstance(asked, Mapping) else asked
    if isinstance(name, str) and name not in CRITERIA:
        return None
    return made(CRITERIA, "criterion", asked)


def _as_mapping(asked: Any) -> dict[str, Any]:
    return dict(asked) if isinstance(asked, Mapping) else {"name": asked}


def _says(asked: Any, setting: str) -> bool:
    """Whether a setting was decided: it is given, or the criterion is an object."""
    return not isinstance(asked, str) and (not isinstance(asked, Mapping) or setting in asked)
