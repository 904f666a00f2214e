"""Whether a plan that was made before can be applied to a model."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..data.windows import check_positions
from ..errors import DataError
from ..models.units import model_shape
from ..planning import PruningPlan, check_derived
from .text import GivenText


def check_applies(model: PreTrainedModel, plan: PruningPlan, config: MoreauPrunerConfig, given: GivenText) -> None:
    """Refuses a plan that is for another model, or is to be compensated for without a text that serves.

    Args:
        model: the base model.
        plan: the plan.
        config: that it is applied with.
        given: text for its compensation.

    Raises:
        PlanError: the plan is for another model.
        DataError: no text is given, or the model has too few positions for its windows.
    """
    if config.compensation.fits and given.source is None:
        source = plan.calibration.get("source", "no text on record")
        raise DataError(
            f"the plan is to be compensated for ('{config.compensation.name}'), which reads text: give the"
            f" calibration (--calibration; that of the scores was {source})"
        )
    shape = model_shape(model)
    plan.check_matches(model, shape)
    check_derived(shape, plan, config)
    if config.compensation.fits:
        check_positions(model.config, config.sequence_length)
