"""The state in which a model is scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..models.undisturbed import plain_outputs, undisturbed


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter requires a gradient; afterwards everything is as it was, also on an error.

    What the process or the model's config is set to decides nothing (models/undisturbed.py).
    """
    training = {module: module.training for module in model.modules()}
    # by name: a parameter may be replaced meanwhile; those of inference mode never can require one
    requires = {name: p.requires_grad for name, p in model.named_parameters() if not p.is_inference()}
    try:
        model.eval()
        for name in requires:
            model.get_parameter(name).requires_grad_(False)
        with undisturbed(), plain_outputs(model):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for name, flag in requires.items():
            model.get_parameter(name).requires_grad_(flag)
