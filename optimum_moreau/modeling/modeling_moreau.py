# Copyright 2026 The optimum_moreau authors. Licensed under the Apache License, Version 2.0.
"""LLaMA-family models whose decoder layers differ in shape, made by optimum_moreau.

This file travels with every checkpoint of these types, so it needs torch and transformers only. Loading such a
checkpoint takes either `import optimum_moreau` or `trust_remote_code=True`.

Each model is its stock transformers model; only the constructor differs. config.json holds transformers' own
`per_layer_config` ({"3": {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 120}, …}), and each
decoder layer is the stock layer, built from its own entry.
"""

import copy

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer


class PerLayerShapes:
    """What the configs share: head counts need not divide the hidden size, and configs compare by value."""

    def validate_architecture(self):
        """Checks every layer: its query heads are a multiple of its KV heads."""
        for index, layer in enumerate(self.per_layer_config):
            if layer.num_attention_heads % layer.num_key_value_heads:
                raise ValueError(
                    f"layers.{index}: {layer.num_attention_heads} heads are no multiple of"
                    f" {layer.num_key_value_heads} KV heads"
                )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__eq__ = _same_values  # the dataclass's own one would read per-layer attributes globally, and raise


def _same_values(config, other):
    return type(config) is type(other) and config.to_dict() == other.to_dict()


# `strict` again on each subclass: otherwise the parent's validator runs, which refuses these shapes.
@strict
class MoreauLlamaConfig(PerLayerShapes, LlamaConfig):
    """`LlamaConfig` with per-layer shapes."""

    model_type = "moreau_llama"


@strict
class MoreauMistralConfig(PerLayerShapes, MistralConfig):
    """`MistralConfig` with per-layer shapes."""

    model_type = "moreau_mistral"


@strict
class MoreauQwen2Config(PerLayerShapes, Qwen2Config):
    """`Qwen2Config` with per-layer shapes."""

    model_type = "moreau_qwen2"


@strict
class MoreauQwen3Config(PerLayerShapes, Qwen3Config):
    """`Qwen3Config` with per-layer shapes."""

    model_type = "moreau_qwen3"


def _shell(config):
    """A copy of the config with no layers, for the stock constructor, which knows one shape only."""
    shell = copy.copy(config)
    shell.per_layer_config = None
    shell.num_hidden_layers = 0
    return shell


def _adopt(model, shell, config):
    """Puts the real config in the place of the shell that the stock constructor worked with."""
    config._attn_implementation_internal = shell._attn_implementation_internal
    config._experts_implementation_internal = shell._experts_implementation_internal
    for module in model.modules():
        if getattr(module, "config", None) is shell:
            module.config = config


class PerLayerModel:
    """Decoder whose layers are built from their own entries of `per_layer_config`."""

    _auto_class = "AutoModel"

    def __init__(self, config):
        shell = _shell(config)
        super().__init__(shell)
        _adopt(self, shell, config)
        self.layers = nn.ModuleList(
            self.decoder_layer_class(config.per_layer_config[index], index) for index in range(config.num_hidden_layers)
        )
        # One config for all modules: a layer's copy would not follow `set_attn_implementation`.
        for module in self.layers.modules():
            if hasattr(module, "config"):
                module.config = config
        self.post_init()


class PerLayerCausalLM:
    """Causal language model on such a decoder."""

    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config):
        shell = _shell(config)
        super().__init__(shell)
        _adopt(self, shell, config)
        self.model = self.decoder_class(config)
        self.post_init()


class MoreauLlamaModel(PerLayerModel, LlamaModel):
    """`LlamaModel` with per-layer shapes."""

    config_class = MoreauLlamaConfig
    decoder_layer_class = LlamaDecoderLayer


class MoreauLlamaForCausalLM(PerLayerCausalLM, LlamaForCausalLM):
    """`LlamaForCausalLM` with per-layer shapes."""

    config_class = MoreauLlamaConfig
    decoder_class = MoreauLlamaModel


class MoreauMistralModel(PerLayerModel, MistralModel):
    """`MistralModel` with per-layer shapes."""

    config_class = MoreauMistralConfig
    decoder_layer_class = MistralDecoderLayer


class MoreauMistralForCausalLM(PerLayerCausalLM, MistralForCausalLM):
    """`MistralForCausalLM` with per-layer shapes."""

    config_class = MoreauMistralConfig
    decoder_class = MoreauMistralModel


class MoreauQwen2Model(PerLayerModel, Qwen2Model):
    """`Qwen2Model` with per-layer shapes."""

    config_class = MoreauQwen2Config
    decoder_layer_class = Qwen2DecoderLayer


class MoreauQwen2ForCausalLM(PerLayerCausalLM, Qwen2ForCausalLM):
    """`Qwen2ForCausalLM` with per-layer shapes."""

    config_class = MoreauQwen2Config
    decoder_class = MoreauQwen2Model


class MoreauQwen3Model(PerLayerModel, Qwen3Model):
    """`Qwen3Model` with per-layer shapes."""

    config_class = MoreauQwen3Config
    decoder_layer_class = Qwen3DecoderLayer


class MoreauQwen3ForCausalLM(PerLayerCausalLM, Qwen3ForCausalLM):
    """`Qwen3ForCausalLM` with per-layer shapes."""

    config_class = MoreauQwen3Config
    decoder_class = MoreauQwen3Model
