"""Scores that were made before serve again: for another size, budget, scope or compensation, or another mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..loading import load_skeleton
from ..planning import PruningPlan
from ..scoring.scores import UnitScores
from .made import made_with
from .run import Run
from .scoring import Planned, planned


def plan_again(
    model: PreTrainedModel | str,
    scores: UnitScores | str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **changes: Any,
) -> PruningPlan:
    """Makes a new plan from scores that were made before; nothing is scored, and no weights are read.

    Args:
        model: the base model, or its folder or Hub id.
        scores: as `MoreauPruner.plan` returned them; or their file, or the pruned folder that holds it.
        revision: of a model on the Hub.
        trust_remote_code: run modeling code that lies beside the weights.
        **changes: settings of the new plan: `pruning_ratio=0.3`, `budget="global"`.

    Raises:
        ConfigError: a change would have changed the scores, or the scores carry no config.
        PlanError: the scores are of another model or scope, or the size cannot be reached.
    """
    if isinstance(model, str):
        model = load_skeleton(model, revision=revision, trust_remote_code=trust_remote_code)
    return planned_again(model, scores, changes)[1].plan


def planned_again(
    model: PreTrainedModel, scores: UnitScores | str | Path, changes: Mapping[str, Any]
) -> tuple[Run, Planned]:
    """The run of a plan that is made again, and what it comes to; arguments and errors as for `plan_again`."""
    read = scores if isinstance(scores, UnitScores) else UnitScores.load(scores)
    name = "the scores" if isinstance(scores, UnitScores) else str(scores)
    run = Run.begin(model, made_with(read, name).replanned(changes, name).resolve(model.config), made=read)
    return run, planned(run)
