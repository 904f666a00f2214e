"""Scores that were made before, and whether they serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..config import MoreauPrunerConfig
from ..config.settings import decided_otherwise
from ..errors import ConfigError
from ..scoring.scores import UnitScores


@dataclass(frozen=True)
class ElementScores:
    """The importance of every weight that a mask may take, of the dense model.

    Attributes:
        values: `model.layers.3.mlp.up_proj.weight` → float32 tensor `(out, in)` on the CPU; larger is more important.
        origin: base model, revision, fingerprint, config and calibration that they were made with.
    """

    values: Mapping[str, Tensor]
    origin: Mapping[str, Any] = field(default_factory=dict)


def check_serves(scores: UnitScores | ElementScores, config: MoreauPrunerConfig) -> None:
    """Refuses scores that this config would have made otherwise.

    Args:
        scores: made before.
        config: resolved.

    Raises:
        ConfigError: names what decided them; or they carry no config, or come from rounds that led to another size.
    """
    made = made_with(scores, "the scores")
    if config.masks != isinstance(scores, ElementScores):
        needed = "element_scores(…) for a mask" if config.masks else "plan(…) for units"
        raise ConfigError(f"scores: are a {type(scores).__name__}; give what {needed} returned")
    if isinstance(scores, ElementScores) and not scores.values:
        raise ConfigError(
            f"scores: {config.criterion.name} scores each layer as the masked ones before it leave it, so that none"
            " serve again; leave scores out"
        )
    kinds = ("elements",) if config.masks else ("elements", "scores")
    other = [name for name in decided_otherwise(made, config, *kinds) if name != "mask"]
    if other or (max(made.rounds, config.rounds) > 1 and made != config):
        raise ConfigError(f"scores: {', '.join(other) or 'rounds'} decided them; score again (leave scores out)")


def made_with(scores: UnitScores | ElementScores, name: str) -> MoreauPrunerConfig:
    """The config that scores were made with; `name` is theirs, for messages.

    Raises:
        ConfigError: they carry none.
    """
    if not scores.origin.get("config"):
        raise ConfigError(f"{name}: carries no config; score the model again with `plan` or `prune`")
    return MoreauPrunerConfig.from_dict(scores.origin["config"])
