"""What `plan --dry-run` and `prune --dry-run` print: sizes before and after, or zeros; memory and time."""

from __future__ import annotations

import argparse
from typing import Any

from ..config import MoreauPrunerConfig
from ..config.quantities import words_for_parts
from ..pipeline import sizes


def estimate(args: argparse.Namespace, given: MoreauPrunerConfig) -> dict[str, Any]:
    """Works from config.json alone, and refuses a size that removes nothing."""
    from ..compensation.biases import shape_to_count
    from ..estimate import estimate_pruning
    from ..loading import load_skeleton
    from ..models.units import model_shape

    where = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    skeleton = load_skeleton(args.model, dtype=args.dtype, **where)
    config = given.resolve(skeleton.config)
    found = estimate_pruning(skeleton, config, calibration=args.calibration, device=args.device)
    if not config.masks:
        sizes.check_shape(shape_to_count(skeleton, model_shape(skeleton), config), config)
    return found.to_dict()


def parts(result: dict[str, Any]) -> str:
    """`: layers 5 %, mlp 15 %` of the model, for more than one target."""
    return words_for_parts(result["contributions"], result["parameters_before"])


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    from ..estimate.pruning import shown

    return shown(result)
