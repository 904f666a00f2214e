"""The state in which a model is scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter requires a gradient; afterwards everything is as it was, also on an error."""
    training = {module: module.training for module in model.modules()}
    parameters = (parameter for parameter in model.parameters() if not parameter.is_inference())  # those never can
    requires = {parameter: parameter.requires_grad for parameter in parameters}
    try:
        model.eval()
        for parameter in requires:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in requires.items():
            parameter.requires_grad_(flag)
