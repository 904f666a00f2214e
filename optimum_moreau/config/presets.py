"""Presets: settings to begin with, for the fields that are not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import CRITERIA
from .validation import ENGINES_OF_UNIFORM_LAYERS, UNITS

PRESETS = ("best", "paper", "plain")
PAPER_ETA = 5e-6
PAPER_STEPS: Mapping[str, Mapping[str, float]] = {
    "moreau": {"rho": 0.05, "step_size": 1e-3, "sigma": 0.05},
    "moreau-gs": {"rho": 0.2, "step_size": 2e-4, "sigma": 0.05},
}
# What docs/results.md, "Quality", found to keep most without tuning; as good as with `taylor`, without its gradients.
BEST: Mapping[str, Any] = {
    "criterion": "wanda",
    "calibration_samples": 400,
    "budget": "search",
    "compensation": "refit",
}
_HIDDEN = "taylor"  # scores hidden channels, which wanda does not
_FEWEST = 10  # windows of a criterion that takes many passes over each


def best_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The preset `best`, without what the given fields rule out.

    Hidden channels are scored by `taylor`, which, as any other criterion of gradients, averages the importances of
    single samples. One shape for all layers (a stock class too), and cuts in rounds, have no search. Masks, which have
    neither a search nor a compensation, and the published code, which is there to be compared with the paper, have
    nothing of it. Of a criterion that takes several passes over each window there are so many fewer windows. What is no
    criterion is left for validation.

    Args:
        given: fields of `MoreauPrunerConfig`.
    """
    if given.get("pattern", "units") != "units" or given.get("released"):
        return {}
    found = {**BEST, "calibration_samples": max(BEST["calibration_samples"] // _passes(given), _FEWEST)}
    targets = given.get("targets") or UNITS
    if isinstance(targets, (list, tuple)) and "hidden" in targets:
        found["criterion"] = _HIDDEN
    if _reads_gradients(given.get("criterion", found["criterion"])):
        found["reduction"] = "importance"
    searched = not isinstance(targets, (list, tuple)) or "attention" in targets or "mlp" in targets
    engine, export = given.get("engine"), given.get("export")
    one_shape = given.get("uniform") or engine in ENGINES_OF_UNIFORM_LAYERS or export == "stock"
    if one_shape or not searched or given.get("rounds", 1) != 1:
        del found["budget"]
    return found


def _reads_gradients(criterion: Any) -> bool:
    known = isinstance(criterion, str) and criterion != BEST["criterion"] and criterion in CRITERIA
    return known and "gradients" in CRITERIA.get(criterion).needs


def _passes(given: Mapping[str, Any]) -> int:
    """Forward and backward passes over each window, of criteria that read gradients."""
    name = given.get("criterion", BEST["criterion"])
    if not isinstance(name, str) or name in (BEST["criterion"], _HIDDEN, "lora") or name not in CRITERIA:
        return 1  # the steps of lora are of training
    settings = {**CRITERIA.get(name).defaults, **{field: value for field, value in given.items() if value is not None}}
    passes = 1
    for field in ("steps", "noise_samples", "passes"):
        value = settings.get(field)
        passes *= value if type(value) is int and value > 0 else 1
    return passes


def paper_settings(criterion: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's protocol: 25 % of the units, its ρ, γ, σ and, for the groups, η."""
    settings: dict[str, Any] = {"criterion": criterion, "unit_ratio": 0.25}
    if given.get("relative_rho") is None and given.get("step_ratio") is None:
        settings |= PAPER_STEPS.get(criterion, {})
        if criterion == "moreau-gs" and given.get("eta_quantile") is None:
            settings["eta"] = PAPER_ETA
    return settings
