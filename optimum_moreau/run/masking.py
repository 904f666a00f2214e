"""Single weights set to zero in place, and the record of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..data.sources import model_reference
from ..data.windows import CalibrationSet
from ..masks.sparsify import sparsify
from ..models.buffers import as_reloaded
from ..models.memory import out_of_memory
from ..models.placement import prepare_offloaded
from ..models.units import model_shape
from ..planning import fingerprint, whole_plan
from ..surgery.apply import check_prunable
from ..surgery.export import check_loadable
from .cutting import PruningResult, cut
from .scoring import say_estimate
from .text import GivenText, check_windows_fit


@dataclass(frozen=True)
class ToMask:
    """A model that is ready to be masked, and the text that is read.

    Attributes:
        model: the base model.
        config: resolved.
        found: calibration windows, if any are read.
    """

    model: PreTrainedModel
    config: MoreauPrunerConfig
    found: CalibrationSet | None

    @property
    def tokens(self) -> Tensor | None:
        """That masking reads."""
        return None if self.found is None else self.found.tokens


def prepared_mask(model: PreTrainedModel, config: MoreauPrunerConfig, given: GivenText) -> ToMask:
    """Checks that a model can be masked as a config says, reads the text, and says what it will take.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    check_prunable(model)
    prepare_offloaded(model)
    resolved = config.resolve(model.config)
    check_windows_fit(model.config, resolved)
    found = given.scored(model.config, config)
    say_estimate(model, model_shape(model), resolved)
    return ToMask(model, resolved, found)


def mask(job: ToMask, revision: str | None, start: float) -> PruningResult:
    """In place: sets weights to zero by the config's pattern; the plan on record keeps every unit.

    Args:
        job: what `prepared_mask` gave.
        revision: of the base model, for the record.
        start: when the run began, of `time.perf_counter`.
    """
    model, config, found = job.model, job.config, job.found
    shape = model_shape(model)
    plan = replace(
        whole_plan(shape),
        base_model=model_reference(model.config.name_or_path),
        revision=revision,
        config=config.to_dict(),
        calibration=found.to_dict() if found else {},
    )
    before = fingerprint(model)
    check_loadable(model.config, shape, plan, config.export)  # what cannot be is refused before any zero
    advice = (
        f"masking by {config.criterion.name}: too little memory; give fewer calibration_samples or a smaller batch_size"
    )
    with as_reloaded(model), out_of_memory(lambda: advice):
        sparsity = sparsify(model, shape, job.tokens, config)
    result = cut(model, plan, None, None, start)
    return replace(result, plan=replace(plan, fingerprint=before), sparsity=sparsity)
