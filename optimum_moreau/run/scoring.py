"""How a plan is made: the model is checked, text is read, units are scored in rounds, and what stays is decided."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..compensation.biases import make_counted_plan, shape_to_count
from ..compensation.compensate import check_compensation, compensated
from ..compensation.rounds import rounds, without_removed
from ..config import MoreauPrunerConfig
from ..config.quantities import words_for_bytes
from ..config.settings import deciding
from ..data.sources import model_reference
from ..data.windows import CalibrationSet
from ..estimate import estimate_compensation, estimate_scoring, skeleton_of, too_little_memory
from ..models.buffers import as_reloaded
from ..models.memory import out_of_memory, peak_memory_bytes
from ..models.placement import input_device, prepare_offloaded
from ..models.units import ModelShape, model_shape
from ..planning import PruningPlan, expected_plan, fingerprint, make_plan
from ..saving.summary import versions
from ..scoring.scores import UnitScores, score_units
from ..surgery.apply import check_prunable
from ..surgery.export import check_reachable, with_export
from .text import GivenText, check_windows_fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToScore:
    """A model that is ready to be scored, and the text that is read.

    Attributes:
        model: the base model.
        shape: its shape.
        config: resolved.
        found: windows that scoring reads, if it reads any.
        text: windows that the compensation between rounds reads, if there are rounds.
    """

    model: PreTrainedModel
    shape: ModelShape
    config: MoreauPrunerConfig
    found: CalibrationSet | None
    text: CalibrationSet | None

    @property
    def tokens(self) -> Tensor | None:
        """That scoring reads."""
        return None if self.found is None else self.found.tokens


def prepared(model: PreTrainedModel, config: MoreauPrunerConfig, given: GivenText) -> ToScore:
    """Checks that a model can be pruned as a config says, and reads the text; before anything takes long.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    check_prunable(model)
    prepare_offloaded(model)
    shape = model_shape(model)
    resolved = config.resolve(model.config)
    check_windows_fit(model.config, resolved)
    check_compensation(model, shape, resolved)
    check_reachable(model.config, shape, shape_to_count(model, shape, resolved), resolved)
    given = given.kept()
    found, text = given.scored(model.config, config), None
    if resolved.rounds > 1:
        text = (given if found is None else given.named()).fitted(model.config, resolved)
    return ToScore(model, shape, resolved, found, text)


def scored(job: ToScore, *, revision: str | None, checkpoint: Path | None) -> UnitScores:
    """Scores the units, and records of what; the model is not changed.

    Args:
        job: what `prepared` gave.
        revision: of the base model, for the record.
        checkpoint: folder that keeps every step; a run that was killed goes on from it.

    Raises:
        OutOfMemoryError: says what lowers the need.
        MoreauError: of the kind that names the mistake (errors.py).
    """
    origin = _origin(job, revision)
    say_estimate(job.model, job.shape, job.config)
    device = input_device(job.model).type
    advice = lambda: too_little_memory(skeleton_of(job.model), job.shape, job.config, device)  # noqa: E731
    with as_reloaded(job.model), out_of_memory(advice):
        found = score_in_rounds(
            job.model,
            job.shape,
            job.tokens,
            job.text,
            job.config,
            checkpoint=checkpoint,
            run=_identified(job, origin),
        )
    logger.info("scored; peak memory %s, Python and its libraries included", words_for_bytes(peak_memory_bytes()))
    return replace(found, origin=origin)


def planned(job: ToScore, scores: UnitScores) -> PruningPlan:
    """Decides by the scores which units stay."""
    plan = make_counted_plan(job.model, job.shape, scores, job.config)
    return with_export(plan, job.model.config, job.shape)


def _origin(job: ToScore, revision: str | None) -> dict[str, Any]:
    """What scores and plan record of their making."""
    return {
        "base_model": model_reference(job.model.config.name_or_path),
        "revision": revision,
        "fingerprint": fingerprint(job.model),
        "config": job.config.to_dict(),
        "calibration": job.found.to_dict() if job.found else {},
    }


def _identified(job: ToScore, origin: Mapping[str, Any]) -> str:
    """What identifies a run, so that its steps are gone on with by none that would score otherwise."""
    decides = {
        "config": deciding(job.config, "elements", "scope", "work"),
        "dtype": str(job.model.dtype),
        "device": input_device(job.model).type,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps({**origin, **decides}, sort_keys=True).encode()).hexdigest()


def score_in_rounds(
    model: PreTrainedModel,
    shape: ModelShape,
    tokens: Tensor | None,
    text: CalibrationSet | None,
    config: MoreauPrunerConfig,
    **keeping: Any,
) -> UnitScores:
    """Scores the units; in several rounds, each time as the last one's cut and compensation leave the model.

    Args:
        model: the base model; afterwards it is as it was.
        shape: its shape.
        tokens: that scoring reads.
        text: that compensation reads.
        config: resolved.
        **keeping: `checkpoint` and `run` of `score_units`.
    """
    scores = score_units(model, shape, tokens, config, **keeping)
    known = text.distinct if text else None
    for earlier in rounds(config, shape)[:-1]:
        plan = make_plan(scores, shape, earlier)
        with compensated(model, shape, plan, text.tokens if text else None, earlier, undone=True, distinct=known):
            scores = without_removed(score_units(model, shape, tokens, config), plan, shape)
    return scores


def say_estimate(model: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> None:
    """Logs what scoring, and the compensation after it, will take."""
    if not logger.isEnabledFor(logging.INFO):
        return
    skeleton, device = skeleton_of(model), input_device(model).type
    lines = estimate_scoring(skeleton, shape, config, device).lines
    logger.info("%s: %s", config.decided_by, "; ".join(" ".join(line.split()) for line in lines))
    if config.compensation.fits:
        expected = expected_plan(shape_to_count(model, shape, config), config)
        after = estimate_compensation(skeleton, shape, expected, config, device)
        assert after is not None  # there is one
        logger.info("%s", "; ".join(" ".join(line.split()) for line in after.lines))
