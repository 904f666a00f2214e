"""Decides which class holds a pruned model's shapes, and writes its config.

`stock` is the base model's own class, or the stock alternative where only the head count stands in its way; `custom` is
the own type with per-layer shapes; `auto` takes the first that holds the shapes, in this order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .errors import ExportError
from .families import Family
from .modeling import auto_map, register_auto_classes
from .plan import PruningPlan
from .units import ModelShape

logger = logging.getLogger(__name__)

# Saved in config.json but decided anew for each export.
_EXPORT_KEYS = ("model_type", "architectures", "auto_map", "per_layer_config", "transformers_version")
# Fields of LlamaConfig that MistralConfig does not have; no bias may be set.
_NOT_IN_ALTERNATIVE = ("attention_bias", "mlp_bias", "pretraining_tp")


def pruned_config(model_config: Any, shape: ModelShape, plan: PruningPlan, export: str) -> Any:
    """Returns the config of the pruned model: stock, the stock alternative, or the own type with per-layer shapes.

    Raises:
        ExportError: `export="stock"` on shapes that no stock class holds.
    """
    from transformers import AutoConfig

    register_auto_classes()
    family = shape.family
    dims = [_layer_dims(model_config, plan, index) for index in range(shape.depth)]
    values = {key: value for key, value in model_config.to_dict().items() if key not in _EXPORT_KEYS}
    values["head_dim"] = _head_dim(model_config)
    if all(layer == dims[0] for layer in dims):
        values |= dims[0]
    problem = _stock_problem(values, dims, family.heads_divide_hidden)
    if export != "custom" and not problem:
        model_type = family.base_type
    elif export != "custom" and _fits_alternative(values, dims, family.stock_alternative):
        model_type = str(family.stock_alternative)
        values = {key: value for key, value in values.items() if key not in _NOT_IN_ALTERNATIVE} | {
            "sliding_window": None
        }
    elif export == "stock":
        raise ExportError(f"export='stock': {problem}; {_nearest_uniform(values, dims, plan, family)}")
    else:
        model_type = family.custom_type
        if export == "auto":
            logger.warning(
                "%s, so the model is of type %s: it loads in transformers with `import optimum_moreau` or"
                " trust_remote_code=True, not in vLLM or llama.cpp; for a stock checkpoint: %s",
                problem,
                model_type,
                _nearest_uniform(values, dims, plan, family),
            )
        values |= {"auto_map": auto_map(model_type), "per_layer_config": dict(enumerate(dims))}
    config = AutoConfig.for_model(model_type, **values, attn_implementation=model_config._attn_implementation)
    config.name_or_path = model_config.name_or_path
    return config


def _layer_dims(model_config: Any, plan: PruningPlan, index: int) -> dict[str, int]:
    layer = model_config.per_layer_config[index]
    groups = len(plan.layers[index]["attention"].kept)
    return {
        "num_attention_heads": groups * (layer.num_attention_heads // layer.num_key_value_heads),
        "num_key_value_heads": groups,
        "intermediate_size": len(plan.layers[index]["mlp"].kept),
    }


def _head_dim(model_config: Any) -> int:
    head_dim = getattr(model_config, "head_dim", None)
    return head_dim or model_config.hidden_size // model_config.per_layer_config[0].num_attention_heads


def _stock_problem(values: Mapping[str, Any], dims: list[dict[str, int]], heads_divide_hidden: bool) -> str | None:
    for index, layer in enumerate(dims):
        if layer != dims[0]:
            words = f"layer {index} has {_shape_words(layer)}, layer 0 {_shape_words(dims[0])}"
            return f"{words}; stock classes have one shape"
    if heads_divide_hidden and values["hidden_size"] % dims[0]["num_attention_heads"]:
        return f"{dims[0]['num_attention_heads']} heads do not divide the hidden size {values['hidden_size']}"
    return None


def _fits_alternative(values: Mapping[str, Any], dims: list[dict[str, int]], alternative: str | None) -> bool:
    biases = values.get("attention_bias") or values.get("mlp_bias")
    return alternative is not None and not biases and all(layer == dims[0] for layer in dims)


def _shape_words(layer: Mapping[str, int]) -> str:
    return (
        f"{layer['num_attention_heads']} heads, {layer['num_key_value_heads']} KV heads,"
        f" {layer['intermediate_size']} channels"
    )


def _nearest_uniform(values: Mapping[str, Any], dims: list[dict[str, int]], plan: PruningPlan, family: Family) -> str:
    mean = {key: round(sum(layer[key] for layer in dims) / len(dims)) for key in dims[0]}
    n_rep = dims[0]["num_attention_heads"] // dims[0]["num_key_value_heads"]
    legal = list(range(1, 1 + min(layer["attention"].total for layer in plan.layers.values())))
    if family.heads_divide_hidden and not _fits_alternative(values, dims[:1], family.stock_alternative):
        legal = [groups for groups in legal if not values["hidden_size"] % (n_rep * groups)]
    if not legal:
        return "no uniform plan is legal: export 'auto' makes an own type"
    groups = min(legal, key=lambda count: (abs(count - mean["num_key_value_heads"]), -count))
    channels = min(layer["mlp"].total for layer in plan.layers.values())
    mean |= {
        "num_attention_heads": n_rep * groups,
        "num_key_value_heads": groups,
        "intermediate_size": min(mean["intermediate_size"], channels),
    }
    even = all(len({layer[kind].total for layer in plan.layers.values()}) == 1 for kind in ("attention", "mlp"))
    flags = f" (--attention-layers 0:{len(dims)} --mlp-layers 0:{len(dims)} --budget uniform)" if even else ""
    return f"nearest legal plan: {_shape_words(mean)} in every layer{flags}"
