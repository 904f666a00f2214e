"""Room for an intercept: zero biases for matrices that have none, where the model's class can hold them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..config import MoreauPrunerConfig
from ..errors import UnsupportedModelError
from ..placement import is_offloaded
from ..plan import PruningPlan, contributions, make_plan
from ..registry import COMPENSATIONS
from ..scores import UnitScores
from ..units import ModelShape, decoder_layers, model_shape

_FLAGS = {"attention": "attention_bias", "mlp": "mlp_bias"}


@contextmanager
def with_biases(model: PreTrainedModel, shape: ModelShape, *, undone: bool = False) -> Iterator[None]:
    """In place: every matrix that reads heads or channels has a bias, zero where it had none.

    The class decides which others get one too: with `attention_bias` a LLaMA's q, k and v have biases as well.

    Args:
        model: the base model.
        shape: its shape.
        undone: afterwards all is as it was; otherwise only if the block ends in an error.

    Raises:
        UnsupportedModelError: the class holds no such biases, or the model is offloaded.
    """
    flags = _flags(model, shape)
    given: list[Any] = []
    whole = False
    try:
        if flags:
            given += _give(model, shape, flags)
        yield
        whole = True
    finally:
        if undone or not whole:
            for module in given:
                module.bias = None
            for flag, value in flags.items():
                if value is not None:
                    setattr(model.config, flag, value)


def has_intercept(config: MoreauPrunerConfig) -> bool:
    """Whether the compensation of a config fits biases."""
    return config.intercept or COMPENSATIONS.get(config.compensation).needs_bias


def shape_to_count(model: PreTrainedModel, shape: ModelShape, config: MoreauPrunerConfig) -> ModelShape:
    """The shape that a size is counted on: for one that is not to be exceeded, with the biases of an intercept.

    Args:
        model: the base model, on any device (meta included).
        shape: its shape.
        config: resolved.

    Raises:
        UnsupportedModelError: the class holds no such biases.
    """
    limited = config.target_parameters is not None or config.target_bytes is not None
    flags = _flags(model, shape) if limited and has_intercept(config) else {}
    return model_shape(_twin(model, shape, flags)) if flags else shape


def make_counted_plan(
    model: PreTrainedModel, shape: ModelShape, scores: UnitScores, config: MoreauPrunerConfig
) -> PruningPlan:
    """`make_plan`, of a size that holds with the biases that come with the compensation."""
    plan = make_plan(scores, shape_to_count(model, shape, config), config)
    return replace(plan, contributions=contributions(plan, shape))


def check_biases(model: PreTrainedModel, shape: ModelShape) -> None:
    """Refuses, before any work is done, a model that cannot get biases where `with_biases` gives them.

    Raises:
        UnsupportedModelError: says why.
    """
    with with_biases(model, shape, undone=True):
        pass


def _flags(model: PreTrainedModel, shape: ModelShape) -> dict[str, Any]:
    """The config's flags that stand for the biases that are lacking, and their values; of those it has not, `None`."""
    layers = decoder_layers(model)
    lacking = {b.kind for b in shape.blocks if b.layer is not None and not _has_bias(layers[b.layer], b.reader.module)}
    return {_FLAGS[kind]: getattr(model.config, _FLAGS[kind], None) for kind in lacking}


def _twin(model: PreTrainedModel, shape: ModelShape, flags: dict[str, Any]) -> PreTrainedModel:
    """The same model with biases, on the meta device."""
    config = copy.deepcopy(model.config)
    for flag in flags:
        if hasattr(config, flag):
            setattr(config, flag, True)
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    layers = decoder_layers(twin)
    for block in shape.blocks:
        if block.layer is not None and not _has_bias(layers[block.layer], block.reader.module):
            raise UnsupportedModelError(
                f"{model.config.model_type}: its {block.reader.module.rpartition('.')[2]} can hold no bias; leave the"
                " intercept out, or take compensation 'refit'"
            )
    return twin


def _give(model: PreTrainedModel, shape: ModelShape, flags: dict[str, Any]) -> list[Any]:
    twin = _twin(model, shape, flags)
    if is_offloaded(model):
        raise UnsupportedModelError("an intercept needs new biases, which an offloaded model cannot get; load it whole")
    given: list[Any] = []
    for name, pattern in twin.named_modules():
        module: Any = model.get_submodule(name)
        if isinstance(pattern, nn.Linear) and pattern.bias is not None and module.bias is None:
            weight = module.weight
            module.bias = nn.Parameter(
                torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device),
                requires_grad=weight.requires_grad,
            )
            given.append(module)
    for flag in flags:
        setattr(model.config, flag, True)
    return given


def _has_bias(layer: Any, module: str) -> bool:
    return layer.get_submodule(module).bias is not None
