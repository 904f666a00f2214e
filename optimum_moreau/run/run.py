"""One pruning run: what is read, made and decided once, and handed on to every step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..compensation.biases import check_compensation, shape_to_count
from ..config import MoreauPrunerConfig
from ..criteria.criterion import OfGradients
from ..data.parts import Parts, parted
from ..data.sources import model_reference
from ..data.windows import CalibrationSet, CalibrationText, check_positions
from ..distributed import is_distributed
from ..errors import ConfigError, DataError, PlanError
from ..models.placement import prepare_offloaded
from ..models.units import ModelShape, model_shape
from ..planning import PruningPlan, check_derived, fingerprint
from ..saving.outputs import check_folder
from ..scoring.scores import UnitScores, needs_text
from ..surgery.apply import check_prunable
from ..surgery.export import check_reachable
from .made import ElementScores, check_serves

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a run is made of: checked, read, and resolved against the model.

    Attributes:
        model: the base model, whole as yet.
        shape: its shape.
        counted: the shape that a size is counted on: with the biases of an intercept, where a size limits them.
        config: resolved.
        scored: windows that scoring, or masking, reads; `None` where it reads none.
        fitted: windows that the compensation reads; `None` where it reads none, or nothing is cut.
        parts: of these, what is fitted on and what is held out.
        made: scores that were made before, if they were.
        checkpoint: folder that keeps Moreau steps and adjusted layers; a run that was killed goes on from it.
        revision: of the base model, for the record.
        started: of `time.perf_counter`.
    """

    model: PreTrainedModel
    shape: ModelShape
    counted: ModelShape
    config: MoreauPrunerConfig
    scored: CalibrationSet | None = None
    fitted: CalibrationSet | None = None
    parts: Parts | None = None
    made: UnitScores | ElementScores | None = None
    checkpoint: Path | None = None
    revision: str | None = None
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def prepare(
        cls,
        model: PreTrainedModel,
        config: MoreauPrunerConfig,
        text: CalibrationText,
        *,
        cut: bool,
        made: UnitScores | ElementScores | None = None,
        checkpoint: str | Path | None = None,
        revision: str | None = None,
        check: Callable[[ModelShape, MoreauPrunerConfig], None] | None = None,
    ) -> Run:
        """Checks that a model can be pruned or masked as a config says, and reads the text; before all that takes long.

        Args:
            model: the base model.
            config: what to prune and how.
            text: of the calibration.
            cut: the plan is to be applied, and not only made.
            made: scores that were made before, if they were.
            checkpoint: folder that keeps Moreau steps and adjusted layers.
            revision: of the base model, for the record.
            check: refuses more, of the shape that sizes are counted on and the config, before the text is read.

        Raises:
            MoreauError: of the kind that names the mistake (errors.py).
        """
        check_prunable(model)
        folder = None if checkpoint is None else Path(checkpoint).expanduser()
        run = cls.begin(model, config.resolve(model.config), made=made, checkpoint=folder, revision=revision)
        if folder is not None:
            _check_keeps(run.config, folder, cut=cut)
        if made is not None:
            check_serves(made, run.config)
        if needs_text(run.config) or run.config.compensation.fits:
            check_positions(model.config, run.config.sequence_length)
        if not run.config.masks:
            check_compensation(model, run.shape, run.config)
            check_reachable(model.config, run.shape, run.counted, run.config)
        if check is not None:
            check(run.counted, run.config)
        return run._with_text(
            text, scores=needs_text(run.config) and not isinstance(made, UnitScores), fits=cut or run.config.rounds > 1
        )

    @classmethod
    def to_apply(
        cls,
        model: PreTrainedModel,
        plan: PruningPlan,
        text: CalibrationText,
        *,
        otherwise: MoreauPrunerConfig,
        export: str | None = None,
    ) -> Run:
        """The run of a plan that was made before.

        Args:
            model: the base model.
            plan: what stays of it.
            text: for its compensation, if it has one.
            otherwise: the config, where the plan carries none (written by hand).
            export: `auto`, `stock` or `custom`, instead of the config's.

        Raises:
            PlanError: the plan is for another model, or of a mask.
            DataError: it is to be compensated for, and no text is given, or the model has too few positions.
        """
        check_prunable(model)
        config = MoreauPrunerConfig.from_dict(plan.config) if plan.config else otherwise
        if config.masks:
            mask = config.mask.pattern
            raise PlanError(f"the plan is of a mask ({mask}), which it does not hold; prune the base again")
        if export is not None:
            config = MoreauPrunerConfig.from_dict({**config.to_dict(), "export": export})
        if config.batch_size is None:  # the plan was written by hand
            config = config.resolve(model.config)
        step = config.compensation
        if step.fits and text.source is None:
            source = plan.calibration.get("source", "no text on record")
            raise DataError(
                f"the plan is to be compensated for ('{step.name}'), which reads text: give the calibration"
                f" (--calibration; that of the scores was {source})"
            )
        run = cls.begin(model, config, revision=plan.revision)
        plan.check_matches(model, run.shape)
        check_derived(run.shape, plan, config)
        if step.fits:
            check_positions(model.config, config.sequence_length)
            check_compensation(model, run.shape, config)
        return run._with_text(text, scores=False, fits=True)

    @classmethod
    def begin(cls, model: PreTrainedModel, config: MoreauPrunerConfig, **known: Any) -> Run:
        """A run that reads no text; the config is resolved, and other fields are known."""
        prepare_offloaded(model)
        shape = model_shape(model)
        return cls(model, shape, shape_to_count(model, shape, config), config, **known)

    def _with_text(self, text: CalibrationText, *, scores: bool, fits: bool) -> Run:
        """The run with its windows; those that are fitted begin with those that are scored."""
        c, vocabulary = self.config, self.model.config.vocab_size
        draw = lambda samples: text.windows(samples, c.sequence_length, c.seed, vocab_size=vocabulary)  # noqa: E731
        scored = draw(c.calibration_samples) if scores else None
        fits = fits and c.compensation.fits and not c.masks
        apart = c.compensation.apart
        fitted = draw(c.compensation.windows + apart) if fits else None
        parts = parted(fitted.tokens, apart, fitted.places, fitted.source) if fitted else None
        return replace(self, scored=scored, fitted=fitted, parts=parts)

    @property
    def tokens(self) -> Tensor | None:
        """That scoring reads, `(samples, length)`."""
        return None if self.scored is None else self.scored.tokens

    def origin(self) -> dict[str, Any]:
        """What scores and plan record of their making."""
        return {
            "base_model": model_reference(self.model.config.name_or_path),
            "revision": self.revision,
            "fingerprint": fingerprint(self.model),
            "config": self.config.to_dict(),
            "calibration": self.scored.to_dict() if self.scored else {},
        }


def _check_keeps(config: MoreauPrunerConfig, folder: Path, *, cut: bool) -> None:
    """Refuses a folder of steps where there are none to keep, in several processes, and where it cannot be written."""
    if config.masks:
        raise ConfigError("checkpoint_dir: masks are made without steps to keep; leave it out")
    if is_distributed():
        raise ConfigError("checkpoint_dir works in one process only; leave it out under torchrun")
    if not config.criterion.resumable() and not (cut and config.compensation.fits):
        raise ConfigError(
            f"checkpoint_dir: {config.criterion.name} keeps no steps with these settings; leave it out, or take moreau"
            " or moreau-gs with reduction 'gradient' (--reduction gradient), without released and average_last"
        )
    check_folder(folder)
    if not config.criterion.resumable() and isinstance(config.criterion, OfGradients):
        text = (
            "checkpoint_dir: adjusted layers are kept, and of the scoring by %s nothing (moreau: --reduction gradient)"
        )
        logger.warning(text, config.criterion.name)
