"""How a plan is made: units are scored, in rounds if so asked, and what stays is decided."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..compensation.compensate import compensated
from ..compensation.rounds import rounds, without_removed
from ..config.quantities import words_for_bytes
from ..config.settings import deciding
from ..errors import ConfigError
from ..estimate import estimate_compensation, estimate_scoring, skeleton_of, too_little_memory
from ..masks.sparsify import element_scores
from ..models.buffers import as_reloaded
from ..models.memory import out_of_memory, peak_memory_bytes
from ..models.placement import input_device
from ..planning import PruningPlan, expected_plan, make_plan
from ..saving.summary import versions
from ..scoring.scores import UnitScores, score_units
from ..surgery.export import Export, decide_export
from .made import ElementScores
from .run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """What a run comes to before anything is cut.

    Attributes:
        plan: which units stay.
        export: the class that holds them.
        scores: that decided.
    """

    plan: PruningPlan
    export: Export
    scores: UnitScores


def planned(run: Run) -> Planned:
    """Decides by the scores which units stay, and which class will hold them; of another class the plan says why.

    Args:
        run: of the base model, which is not changed; it is scored if no scores were made before.

    Raises:
        PlanError: the size cannot be reached, or a runtime would read what stays as another network.
        ExportError: `export="stock"` on shapes that no stock class holds.
        MoreauError: of the kind that names the mistake (errors.py).
    """
    scores = run.made if isinstance(run.made, UnitScores) else _scored(run)
    plan = make_plan(scores, run.shape, run.config, counted=run.counted)
    export = decide_export(run.model.config, run.shape, plan, run.config.export)
    return Planned(replace(plan, adjustments=(*plan.adjustments, *export.words)), export, scores)


def scored_elements(run: Run) -> ElementScores:
    """Scores every weight that a mask may take; the model is left as it was.

    Raises:
        MoreauError: the config is of no mask, or of the kind that names the mistake (errors.py).
    """
    if not run.config.masks:
        raise ConfigError("element_scores: the config has no mask; plan(…) returns the scores of units")
    return ElementScores(element_scores(run.model, run.shape, run.tokens, run.config), run.origin())


def _scored(run: Run) -> UnitScores:
    """Scores the units, and records of what."""
    origin = run.origin()
    say_estimate(run)
    device = input_device(run.model).type
    advice = lambda: too_little_memory(skeleton_of(run.model), run.shape, run.config, device)  # noqa: E731
    with as_reloaded(run.model), out_of_memory(advice):
        found = score_in_rounds(run, _identified(run, origin, device))
    logger.info("scored; peak memory %s, Python and its libraries included", words_for_bytes(peak_memory_bytes()))
    return replace(found, origin=origin)


def score_in_rounds(run: Run, identity: str = "") -> UnitScores:
    """Scores the units; in several rounds, each time as the last one's cut and compensation leave the model.

    Args:
        run: what is scored; afterwards the model is as it was.
        identity: by which a run goes on from its own steps alone.
    """
    model, shape, config = run.model, run.shape, run.config
    steps = run.checkpoint if config.criterion.resumable() else None
    scores = score_units(model, shape, run.tokens, config, checkpoint=steps, run=identity)
    known = run.fitted.distinct if run.fitted else None
    for earlier in rounds(config, shape)[:-1]:
        plan = make_plan(scores, shape, earlier)
        with compensated(model, shape, plan, run.parts, earlier, undone=True, distinct=known):
            scores = without_removed(score_units(model, shape, run.tokens, config), plan, shape)
    return scores


def say_estimate(run: Run) -> None:
    """Logs what scoring, and the compensation after it, will take."""
    if not logger.isEnabledFor(logging.INFO):
        return
    skeleton, device, config = skeleton_of(run.model), input_device(run.model).type, run.config
    lines = estimate_scoring(skeleton, run.shape, config, device).lines
    logger.info("%s: %s", config.decided_by, "; ".join(" ".join(line.split()) for line in lines))
    if config.compensation.fits:
        after = estimate_compensation(skeleton, run.shape, expected_plan(run.counted, config), config, device)
        assert after is not None  # there is one
        logger.info("%s", "; ".join(" ".join(line.split()) for line in after.lines))


def _identified(run: Run, origin: Mapping[str, Any], device: str) -> str:
    """What identifies a run, so that its steps are gone on with by none that would score otherwise."""
    decides = {
        "config": deciding(run.config, "elements", "scope", "work"),
        "dtype": str(run.model.dtype),
        "device": device,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps({**origin, **decides}, sort_keys=True).encode()).hexdigest()
