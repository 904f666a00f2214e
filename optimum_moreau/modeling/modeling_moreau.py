# Copyright 2026 The optimum_moreau authors. Licensed under the Apache License, Version 2.0.
"""LLaMA-family models whose decoder layers differ in shape, made by optimum_moreau.

This file travels with every checkpoint of these types, so it needs torch and transformers only. Loading such a
checkpoint takes either `import optimum_moreau` or `trust_remote_code=True`.

Each model is its stock transformers model; only the constructor differs. config.json holds transformers' own
`per_layer_config` ({"3": {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 120}, …}), and each
decoder layer is the stock layer, built from its own entry. `added_biases` (["mlp.down_proj", …]) names linear layers
that have a bias in every decoder layer, and none in the stock class. The classes are made from the table at the end of
the file: type `moreau_qwen2` has MoreauQwen2Config, MoreauQwen2Model and MoreauQwen2ForCausalLM.
"""

import copy
import sys

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PreTrainedModel


class PerLayerShapes:
    """What the configs share: head counts need not divide the hidden size, and configs compare by value."""

    added_biases = ()

    def validate_architecture(self):
        """Checks every layer: its query heads are a multiple of its KV heads."""
        for index, layer in enumerate(self.per_layer_config):
            if layer.num_attention_heads % layer.num_key_value_heads:
                raise ValueError(
                    f"layers.{index}: {layer.num_attention_heads} heads are no multiple of"
                    f" {layer.num_key_value_heads} KV heads"
                )

    def validate_rope(self):
        """Checks RoPE on the first layer's own config: a family's check may read attributes that differ per layer."""
        super(PerLayerShapes, self.per_layer_config[0]).validate_rope()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__eq__ = _same_values  # the dataclass's own one would read per-layer attributes globally, and raise


def _same_values(config, other):
    return type(config) is type(other) and config.to_dict() == other.to_dict()


def _shell(config):
    """A copy of the config with no layers, for the stock constructor, which knows one shape only."""
    shell = copy.copy(config)
    shell.per_layer_config = None
    shell.num_hidden_layers = 0
    return shell


def _adopt(model, shell, config):
    """Puts the real config in the place of the shell that the stock constructor worked with.

    What stands outside the layers and is no model (RoPE) gets the first layer's: yarn, dynamic and longrope read head
    counts, which the real one does not have as a whole.
    """
    config._attn_implementation_internal = shell._attn_implementation_internal
    config._experts_implementation_internal = shell._experts_implementation_internal
    for module in model.modules():
        if getattr(module, "config", None) is shell:
            module.config = config if isinstance(module, PreTrainedModel) else config.per_layer_config[0]


class FollowedByLayers:
    """A layer's config is a copy with its own shape: it is told when the attention implementation changes."""

    def set_attn_implementation(self, *args, **kwargs):
        """As in transformers, for the layers' configs too."""
        super().set_attn_implementation(*args, **kwargs)
        for module in self.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = self.config._attn_implementation_internal


class PerLayerModel(FollowedByLayers):
    """Decoder whose layers are built from their own entries of `per_layer_config`."""

    _auto_class = "AutoModel"

    def __init__(self, config):
        shell = _shell(config)
        super().__init__(shell)
        _adopt(self, shell, config)
        self.layers = nn.ModuleList(
            self.decoder_layer_class(config.per_layer_config[index], index) for index in range(config.num_hidden_layers)
        )
        for linear in (layer.get_submodule(name) for layer in self.layers for name in config.added_biases):
            linear.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=linear.weight.dtype))
        self.post_init()


class PerLayerCausalLM(FollowedByLayers):
    """Causal language model on such a decoder."""

    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config):
        shell = _shell(config)
        super().__init__(shell)
        _adopt(self, shell, config)
        self.model = self.decoder_class(config)
        self.post_init()


STOCK_TYPES = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "smollm3", "olmo",
    "phi3", "cohere", "cohere2", "glm", "glm4", "starcoder2", "nemotron", "seed_oss", "ernie4_5", "exaone4",
    "hunyuan_v1_dense", "apertus", "arcee",
)  # fmt: skip


def class_prefix(model_type):
    """`moreau_gemma3_text` → `MoreauGemma3Text`."""
    return "".join(part.capitalize() for part in model_type.split("_"))


def _derive(name, mixin, stock, **attributes):
    doc = f"`{stock.__name__}` with per-layer shapes."
    return type(name, (mixin, stock), {"__module__": __name__, "__doc__": doc, **attributes})


def _classes(stock_type):
    """Makes config, decoder and causal language model of an own type."""
    stock_config = CONFIG_MAPPING[stock_type]
    stock_decoder = MODEL_MAPPING[stock_config]
    stock_module = vars(sys.modules[stock_decoder.__module__])
    layer = next(value for name, value in stock_module.items() if name.endswith("DecoderLayer"))
    prefix = class_prefix(f"moreau_{stock_type}")
    # `strict` again: otherwise the parent's validator runs, which refuses these shapes
    config = strict(_derive(f"{prefix}Config", PerLayerShapes, stock_config, model_type=f"moreau_{stock_type}"))
    shared = {"config_class": config}
    decoder = _derive(f"{prefix}Model", PerLayerModel, stock_decoder, decoder_layer_class=layer, **shared)
    stock_lm = MODEL_FOR_CAUSAL_LM_MAPPING[stock_config]
    return config, decoder, _derive(f"{prefix}ForCausalLM", PerLayerCausalLM, stock_lm, decoder_class=decoder, **shared)


# own type → its config, decoder and causal language model; types that this transformers does not know are left out
OWN_TYPES = {f"moreau_{stock}": _classes(stock) for stock in STOCK_TYPES if stock in CONFIG_MAPPING}
globals().update({made.__name__: made for classes in OWN_TYPES.values() for made in classes})
