"""Room for an intercept: zero biases for matrices that have none.

Where flags of the model's config stand for them its class holds them; elsewhere the config names them, and the pruned
model is exported as the own type, which does (surgery/export.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..distributed import is_distributed
from ..errors import ConfigError, ExportError, UnsupportedModelError
from ..models.buffers import skeleton_of
from ..models.placement import is_offloaded
from ..models.units import ModelShape, decoder_layers, model_shape
from ..surgery.export import ADDED_BIASES, biases_of_own_type
from .train import Train


@contextmanager
def with_biases(model: PreTrainedModel, shape: ModelShape, *, undone: bool = False) -> Iterator[None]:
    """In place: every matrix that reads heads or channels has a bias, zero where it had none.

    Flags decide which others get one too: with `attention_bias` a LLaMA's q, k and v have biases as well. If `undone`,
    or if the block ends in an error, all is as it was afterwards.

    Raises:
        UnsupportedModelError: the model is offloaded.
    """
    settings = _settings(shape)
    before = {name: vars(model.config).get(name) for name in settings}
    given: list[Any] = []
    whole = False
    try:
        if settings:
            _give(model, settings, given)
        yield
        whole = True
    finally:
        if undone or not whole:
            for module in given:
                module.bias = None
            for name, value in before.items():
                if value is not None:
                    setattr(model.config, name, value)
                elif name in vars(model.config):
                    delattr(model.config, name)


def shape_to_count(model: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> ModelShape:
    """The shape that a size is counted on: for one that is not to be exceeded, with the biases of an intercept.

    The base model may be on any device, meta included.
    """
    limited = config.target_parameters is not None or config.target_bytes is not None
    settings = _settings(shape) if limited and config.compensation.fits_biases else {}
    return model_shape(_twin(model, settings)) if settings else shape


def check_compensation(model: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> None:
    """Refuses, before any work is done, an intercept that the model cannot get, or its export cannot hold.

    Raises:
        ExportError: only the own type holds them, and a stock class is asked for.
        UnsupportedModelError: as `with_biases`.
        ConfigError: several processes are to train.
    """
    if isinstance(config.compensation, Train) and is_distributed():
        raise ConfigError("compensation 'train': runs in one process; launch one, or take compensation 'refit'")
    if not config.compensation.fits_biases:
        return
    names = biases_of_own_type(shape)
    if names and config.export == "stock":
        asked = "export='stock'" if config.runtime == "transformers" else f"runtime='{config.runtime}'"
        raise ExportError(
            f"{asked}: a {shape.family.base_type} has no bias in {', '.join(names)}; leave the intercept out,"
            " take compensation 'refit', or export 'auto'"
        )
    with with_biases(model, shape, undone=True):
        pass


def _settings(shape: ModelShape) -> dict[str, Any]:
    """What the config says of a model that has the biases which are lacking."""
    if shape.family.bias_flags is not None:
        flags = dict(zip(("attention", "mlp"), shape.family.bias_flags, strict=True))
        return {flags[kind]: True for kind in shape.without_bias}
    names = biases_of_own_type(shape)
    return {ADDED_BIASES: list(names)} if names else {}


def _twin(model: PreTrainedModel, settings: dict[str, Any]) -> PreTrainedModel:
    """The model with biases, on the meta device."""
    twin = skeleton_of(model, **settings)
    for name in settings.get(ADDED_BIASES, ()):
        for layer in decoder_layers(twin):
            module: Any = layer.get_submodule(name)
            module.bias = nn.Parameter(torch.empty_like(module.weight[:, 0]))
    return twin


def _give(model: PreTrainedModel, settings: dict[str, Any], given: list[Any]) -> None:
    """Gives what lacks them zero biases; `given` grows by what has got one."""
    if is_offloaded(model):
        raise UnsupportedModelError("an intercept needs new biases, which an offloaded model cannot get; load it whole")
    for name, pattern in _twin(model, settings).named_modules():
        module: Any = model.get_submodule(name)
        if isinstance(pattern, nn.Linear) and pattern.bias is not None and module.bias is None:
            w = module.weight
            zeros = torch.zeros(w.shape[0], dtype=w.dtype, device=w.device)
            module.bias = nn.Parameter(zeros, requires_grad=w.requires_grad)
            given.append(module)
    for name, value in settings.items():
        setattr(model.config, name, value)
