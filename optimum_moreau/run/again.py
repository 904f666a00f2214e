"""Plans again from scores that were saved: another size, budget or scope, without scoring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..compensation.biases import make_counted_plan
from ..config import MoreauPrunerConfig
from ..errors import ConfigError
from ..loading import load_skeleton
from ..models.units import model_shape
from ..planning import PruningPlan
from ..scoring.scores import UnitScores
from ..surgery.export import with_export


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
    read = scores if isinstance(scores, UnitScores) else UnitScores.load(scores)
    name = "the scores" if isinstance(scores, UnitScores) else str(scores)
    if not read.origin.get("config"):
        raise ConfigError(f"{name}: carries no config; score the model again with `plan` or `prune`")
    if isinstance(model, str):
        model = load_skeleton(model, revision=revision, trust_remote_code=trust_remote_code)
    config = MoreauPrunerConfig.from_dict(read.origin["config"]).replanned(changes, name).resolve(model.config)
    shape = model_shape(model)
    return with_export(make_counted_plan(model, shape, read, config), model.config, shape)
