"""Compensates for a cut that is to be made, in the model that is whole as yet, and takes back what does not pay.

What stays is fitted to text (fitting.py), and text that was held out decides: where the loss on it is higher than that
of the same cut without compensation, what was fitted is taken back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..data.parts import Parts
from ..data.windows import CalibrationRecord, CalibrationSet
from ..envelope import scoring_mode
from ..errors import DataError
from ..models.hooks import skipped
from ..models.loss import mean_loss
from ..models.placement import restored
from ..models.units import ModelShape, decoder_layers
from ..planning import PruningPlan
from .biases import with_biases
from .done import Adjusted, Trained
from .fitting import Fitter
from .kept import KeptLayers
from .narrow import narrowed
from .silence import silence
from .step import Compensation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """The mean next-token loss, in nats, on windows that nothing was fitted on.

    Attributes:
        windows: their number.
        dense: of the base model.
        cut: of the cut without compensation.
        compensated: with it.
        taken_back: it was worse, so that the model is cut without, or with a simpler one.
        instead: the name of that one; empty: without.
        simpler: its loss.
    """

    windows: int = 0
    dense: float = 0.0
    cut: float = 0.0
    compensated: float = 0.0
    taken_back: bool = False
    instead: str = ""
    simpler: float = 0.0


@dataclass(frozen=True)
class Compensated:
    """What a compensation did.

    Attributes:
        matrices: those that were adjusted, in order.
        trained: the blocks that were trained, in order.
        held_out: what it is worth; `None`: there was nothing to fit.
    """

    matrices: tuple[Adjusted, ...] = ()
    held_out: HeldOut | None = None
    trained: tuple[Trained, ...] = ()


@dataclass(frozen=True)
class CompensationRecord:
    """What a saved summary says of a compensation, as `described` writes it.

    Attributes:
        step: its name.
        ridge: λ, where one is given.
        intercept: whether biases were fitted.
        summary: what it does.
        paper: its source.
        calibration: of its windows, those that were held out included.
        matrices: those that were adjusted.
        held_out: what it is worth.
        trained: the blocks that were trained.
    """

    step: str
    ridge: float | None
    intercept: bool
    summary: str
    paper: str
    calibration: CalibrationRecord
    matrices: tuple[Adjusted, ...]
    held_out: HeldOut = field(default_factory=HeldOut)
    trained: tuple[Trained, ...] = ()


def described(config: MoreauPrunerConfig, text: CalibrationSet, done: Compensated) -> dict[str, Any]:
    """What was done, for the summary."""
    compensation = config.compensation
    return {
        "step": compensation.name,
        "ridge": compensation.damping,
        "intercept": compensation.fits_biases,
        "summary": compensation.summary,
        "paper": compensation.paper,
        "calibration": text.to_dict(),
        "matrices": [asdict(one) for one in done.matrices],
        "held_out": asdict(done.held_out or HeldOut()),
        "trained": [asdict(one) for one in done.trained],
    }


@contextmanager
def compensated(
    model: PreTrainedModel,
    shape: ModelShape,
    plan: PruningPlan,
    parts: Parts | None,
    config: MoreauPrunerConfig,
    *,
    undone: bool = False,
    distinct: int | None = None,
    kept: KeptLayers | None = None,
) -> Iterator[Compensated]:
    """In place: silences what goes, and adjusts what stays; if the block ends in an error, all of that is undone.

    Within the block the model computes what it will once the plan is applied; layers that go whole still compute.

    Args:
        model: the base model.
        shape: its shape.
        plan: what stays.
        parts: calibration windows; may be `None` for `compensation="none"`.
        config: resolved.
        undone: it is undone in any case.
        distinct: tokens of the text that the windows cover, where they overlap; for a warning.
        kept: where adjusted layers are kept; those that are there are not adjusted again.

    Raises:
        UnsupportedModelError: an intercept is asked for, and the model is offloaded.
        NonFiniteError: what flows through a matrix is not finite, or the adjusted weights overflow its dtype.
    """
    with ExitStack() as stack:
        done = Compensated()
        with torch.inference_mode(False), scoring_mode(model), torch.no_grad():
            if not config.compensation.fits:
                _silenced(stack, model, shape, plan, undone=undone)
            elif parts is None:
                raise DataError(f"compensation: '{config.compensation.name}' reads calibration text; give some")
            elif plan.removes:
                done = _Guarded(model, shape, plan, config, parts, kept or KeptLayers()).best(
                    stack, distinct, undone=undone
                )
        yield done


def _silenced(stack: ExitStack, model: PreTrainedModel, shape: ModelShape, plan: PruningPlan, *, undone: bool) -> None:
    """In place: the cut without compensation, until the stack is left."""
    keep = stack.enter_context(restored(decoder_layers(model), always=undone))
    stack.enter_context(narrowed(model, shape, plan))
    silence(model, shape, plan, keep)


class _NoGain(Exception):
    """What was fitted raised the loss on the windows that were held out."""


class _Guarded:
    """Keeps what is best on the windows that were held out: the cut alone, a simpler step, or the step."""

    def __init__(
        self,
        model: PreTrainedModel,
        shape: ModelShape,
        plan: PruningPlan,
        config: MoreauPrunerConfig,
        parts: Parts,
        kept: KeptLayers,
    ):
        self.model, self.shape, self.plan, self.config, self.parts, self.kept = model, shape, plan, config, parts, kept
        self.gone = [decoder_layers(model)[index] for index in plan.removed_layers]

    def best(self, stack: ExitStack, distinct: int | None, *, undone: bool) -> Compensated:
        """In place, until the stack is left: compensates, or cuts alone."""
        step, windows, simpler = self.config.compensation, len(self.parts.held_out), math.inf
        dense = self._loss("the model")
        self.kept = self.kept.by(dense=dense)
        with ExitStack() as attempt:
            _silenced(attempt, self.model, self.shape, self.plan, undone=True)
            cut = self._loss("the cut model")
        if step.simpler is not None:
            with ExitStack() as attempt:
                self._fit(attempt, step.simpler, distinct, undone=True)
                simpler = self._loss("the compensated model")
        with suppress(_NoGain), ExitStack() as attempt:
            found = self._fit(attempt, step, distinct if step.simpler is None else None, undone=undone)
            after = self._loss("the compensated model")
            held_out = HeldOut(windows, dense, cut, after, after > min(cut, simpler))
            words = f"{after:.4f} with '{step.name}', {cut:.4f} without, {dense:.4f} before the cut"
            logger.info("loss on %d windows held out: %s", windows, words)
            if held_out.taken_back:
                raise _NoGain
            stack.push(attempt.pop_all())
            return replace(found, held_out=held_out)
        if simpler > cut:
            logger.warning("compensation: taken back, since it raised the loss on text that was held out: %s", words)
            _silenced(stack, self.model, self.shape, self.plan, undone=undone)
            return replace(found, held_out=held_out)
        text = "compensation: '%s' is better on text that was held out, %.4f, and is taken instead: %s"
        logger.warning(text, step.simpler.name, simpler, words)
        found = self._fit(stack, step.simpler, None, undone=undone)
        return replace(found, held_out=replace(held_out, instead=step.simpler.name, simpler=simpler))

    def _fit(self, stack: ExitStack, step: Compensation, distinct: int | None, *, undone: bool) -> Compensated:
        """In place, until the stack is left: fits."""
        model, shape, plan = self.model, self.shape, self.plan
        if step.fits_biases:
            stack.enter_context(with_biases(model, shape, undone=undone))
        keep = stack.enter_context(restored(decoder_layers(model), always=undone))
        narrow = stack.enter_context(narrowed(model, shape, plan))
        config = replace(self.config, compensation=step)
        fitter = Fitter(model, shape, plan, config, narrow, self.kept.by(config=config.to_dict()))
        fitter.warn_of_few(self.parts.fitted * self.parts.held_out.shape[1], distinct)
        layers = list(fitter.run(self.parts, keep))
        matrices, trained = (
            [one for layer in layers for one in getattr(layer, kind)] for kind in ("matrices", "trained")
        )
        return Compensated(tuple(matrices), trained=tuple(trained))

    def _loss(self, what: str) -> float:
        with skipped(self.gone if what != "the model" else ()):
            return mean_loss(self.model, self.parts.held_out, self.config.batch_size or 1, what)
