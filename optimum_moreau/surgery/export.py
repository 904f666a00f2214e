"""Decides which class holds a pruned model's shapes, and writes its config.

`stock` is the base model's own class, or the stock alternative where only the head count stands in its way; `custom` is
the own type with per-layer shapes; `auto` takes the first that holds the shapes, in this order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from ..config import MoreauPrunerConfig
from ..errors import ExportError, PlanError, first_line, quiet
from ..modeling import auto_map, register_auto_classes
from ..models.buffers import UNBUILDABLE, built_from
from ..models.families import Family
from ..models.units import ModelShape, has_biases
from ..planning import PruningPlan, expected_plan, whole_plan

# Saved in config.json but decided anew for each export.
_EXPORT_KEYS = ("model_type", "architectures", "auto_map", "per_layer_config", "transformers_version")
_PER_LAYER_LISTS = ("layer_types", "no_rope_layers")
# Layers for multi-token prediction (`num_nextn_predict_layers` and its kin), which are not loaded.
_PREDICTION = re.compile(r"(^|_)(nextn|mtp)(_|$)")
# Fields of LlamaConfig that MistralConfig does not have; no bias may be set.
_NOT_IN_ALTERNATIVE = ("attention_bias", "mlp_bias", "pretraining_tp")
# In config.json of an own type: modules of each layer with a bias that the stock class has not.
ADDED_BIASES = "added_biases"


@dataclass(frozen=True)
class Export:
    """Which class holds the pruned shapes.

    Attributes:
        model_type: of the result.
        problem: why the base model's own class does not hold them; empty if it does.
        advice: the nearest plan that it would hold.
        own: it is the own type.
        asked: `auto`, `stock` or `custom`.
    """

    model_type: str
    problem: str = ""
    advice: str = ""
    own: bool = False
    asked: str = "auto"

    @property
    def words(self) -> tuple[str, ...]:
        """What is to be said of it: nothing where the model stays of its own class."""
        if not self.problem:
            return ()
        same = "" if self.advice else ", the same network"
        loads = "; it loads once optimum_moreau is imported, or with trust_remote_code=True" if self.own else ""
        return (f"exported as {self.model_type}{same}: {self.problem}{loads}{self._for_stock}",)

    @property
    def _for_stock(self) -> str:
        return f"; for a stock checkpoint: {self.advice}" if self.advice else ""

    @property
    def by_need(self) -> str:
        """Where the own type was not asked for, and nothing else holds the shapes: what that means."""
        if not (self.own and self.problem and self.asked == "auto"):
            return ""
        return (
            f"{self.problem}, so the model is of type {self.model_type}: load it with `import optimum_moreau` or"
            f" trust_remote_code=True{self._for_stock}"
        )


def decide_export(
    model_config: Any, shape: ModelShape, plan: PruningPlan, export: str, *, coming: bool | None = None
) -> Export:
    """Decides which class holds the pruned shapes.

    Args:
        model_config: of the base model.
        shape: its shape.
        plan: what stays of it.
        export: `auto`, `stock` or `custom`.
        coming: the model is to get the biases of an intercept, which it has not yet; default: as the plan says.

    Raises:
        ExportError: `export="stock"` on shapes that no stock class holds.
    """
    if coming is None:
        coming = plan.removes and bool(shape.without_bias) and _has_intercept(plan)
    family = shape.family
    dims = _dims(model_config, plan)
    added = tuple(getattr(model_config, ADDED_BIASES, ())) or (biases_of_own_type(shape) if coming else ())
    shapes = _stock_problem(_hidden_size(model_config, plan), dims, family)
    biases = f"{family.base_type} has no bias in {', '.join(added)}" if added else ""
    problem = "; ".join(filter(None, (biases, shapes)))
    brief = "; ".join(filter(None, (biases, shapes if _alike(dims) else "layers differ in shape")))
    if export != "custom" and not problem:
        return Export(family.base_type, asked=export)
    alternative = None if coming else family.stock_alternative  # it has no biases
    if export != "custom" and _fits_alternative(model_config, dims, alternative):
        return Export(str(alternative), problem, asked=export)
    changes = []
    if added and _has_intercept(plan):
        changes.append("leave the intercept out")
    if shapes:
        changes.append(_nearest_uniform(model_config, dims, plan, family, alternative))
    advice = "" if added and len(changes) < 1 + bool(shapes) else ", ".join(changes)  # the biases are the base's own
    if export == "stock":
        raise ExportError(f"export='stock': {problem}" + (f"; {advice}" if advice else ""))
    return Export(family.custom_type, brief, advice, own=True, asked=export)


def _has_intercept(plan: PruningPlan) -> bool:
    return MoreauPrunerConfig.from_dict(plan.config).compensation.fits_biases


def biases_of_own_type(shape: ModelShape) -> tuple[str, ...]:
    """The modules of each layer that would get a bias for an intercept which no flag of the stock config stands for."""
    return () if shape.family.bias_flags else tuple(sorted(shape.without_bias.values()))


def pruned_config(model_config: Any, shape: ModelShape, plan: PruningPlan, export: Export) -> Any:
    """Returns the config of the pruned model: stock, the stock alternative, or the own type with per-layer shapes.

    Raises:
        ExportError: the config cannot be read again.
        PlanError: `fold_norms` on a family whose q and k norms share the config's ε.
    """
    register_auto_classes()
    dims = _dims(model_config, plan)
    values = {key: value for key, value in model_config.to_dict().items() if key not in _EXPORT_KEYS}
    heads = model_config.per_layer_config[0].num_attention_heads
    values["head_dim"] = getattr(model_config, "head_dim", None) or model_config.hidden_size // heads
    values["hidden_size"] = _hidden_size(model_config, plan)
    values |= _remaining_layers(values, plan)
    counts = [key for key, value in values.items() if _PREDICTION.search(key) and isinstance(value, int) and value > 0]
    values |= dict.fromkeys(counts, 0)
    if plan.hidden is not None and plan.config.get("fold_norms"):
        check_folding(shape)
        values["rms_norm_eps"] *= plan.hidden.total / len(plan.hidden.kept)  # ε·D/D′
    if all(layer == dims[0] for layer in dims):
        values |= dims[0]
    if export.own:
        values |= {"auto_map": auto_map(export.model_type), "per_layer_config": dict(enumerate(dims))}
    elif export.model_type != shape.family.base_type:
        values = {key: value for key, value in values.items() if key not in _NOT_IN_ALTERNATIVE}
        values["sliding_window"] = None
    config = AutoConfig.for_model(export.model_type, **values, attn_implementation=model_config._attn_implementation)
    config.name_or_path = model_config.name_or_path
    try:
        with quiet("transformers"):  # it has said of the config what there is to say
            type(config).from_dict(json.loads(config.to_json_string()))
    except (StrictDataclassError, *UNBUILDABLE) as error:
        raise ExportError(
            f"the config of a '{config.model_type}' cannot be read again once it is written ({first_line(error)})"
        ) from error
    return config


def check_reachable(model_config: Any, shape: ModelShape, counted: ModelShape, config: MoreauPrunerConfig) -> None:
    """Refuses, before anything is scored, what could not be planned or exported in the end, as these would.

    A size is counted on the shape `counted`; the config is resolved.
    """
    plan = expected_plan(counted, config)
    if config.export == "stock" and (added := tuple(getattr(model_config, ADDED_BIASES, ()))):
        raise ExportError(f"export='stock': the model has biases in {', '.join(added)}, as no stock class has them")
    if config.fold_norms:
        check_folding(shape)
    alike = config.attention_layers == config.mlp_layers == (0, shape.depth)
    if config.budget.name == "uniform" and (alike or "layers" not in config.targets):  # nothing follows a measurement
        decide_export(model_config, shape, plan, config.export)
    check_loadable(model_config, shape, plan, decide_export(model_config, shape, plan, config.export, coming=False))
    if config.budget.name != "uniform" and config.export != "stock":  # layers may come to differ
        first = min(plan.kept_layers or plan.layers)
        layers = {**plan.layers, first: whole_plan(shape).layers[first]}
        check_loadable(model_config, shape, replace(plan, layers=layers), Export(shape.family.custom_type, own=True))


def check_loadable(model_config: Any, shape: ModelShape, plan: PruningPlan, export: Export) -> None:
    """Refuses, before any work is done, what could be saved in the end and not be loaded; errors of `pruned_config`."""
    with quiet("transformers"):
        built_from(pruned_config(model_config, shape, plan, export))


def check_folding(shape: ModelShape) -> None:
    """Raises PlanError where the norms' ε cannot be changed without changing other norms."""
    if shape.family.qk_norms:
        norms = f"the q and k norms of '{shape.family.base_type}'"
        raise PlanError(f"fold_norms: {norms} share rms_norm_eps, so ε cannot be folded; leave it out")


def layer_shapes(model_config: Any, plan: PruningPlan) -> tuple[list[dict[str, int]], list[dict[str, int] | None]]:
    """Returns heads, KV heads, head width and MLP channels of each layer before and after; `None` for one that goes."""
    before = [
        {
            "heads": layer.num_attention_heads,
            "kv_heads": layer.num_key_value_heads,
            "head_dim": getattr(layer, "head_dim", None) or model_config.hidden_size // layer.num_attention_heads,
            "channels": layer.intermediate_size,
        }
        for layer in model_config.per_layer_config
    ]
    after: list[dict[str, int] | None] = [None] * len(before)
    for i, dims in zip(_kept_layers(plan), _dims(model_config, plan), strict=True):
        after[i] = before[i] | dict(zip(("heads", "kv_heads", "channels"), dims.values(), strict=True))
    return before, after


def _kept_layers(plan: PruningPlan) -> Sequence[int]:
    return plan.kept_layers or sorted(plan.layers)


def _dims(model_config: Any, plan: PruningPlan) -> list[dict[str, int]]:
    """Heads, KV heads and channels of each layer that stays."""
    found = []
    for index in _kept_layers(plan):
        layer, own = model_config.per_layer_config[index], plan.layers[index]
        groups, channels = len(own["attention"].kept), len(own["mlp"].kept)
        found.append(_layer(groups * (layer.num_attention_heads // layer.num_key_value_heads), groups, channels))
    return found


def _layer(heads: int, groups: int, channels: int) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": groups, "intermediate_size": channels}


def _hidden_size(model_config: Any, plan: PruningPlan) -> int:
    return len(plan.hidden.kept) if plan.hidden is not None else model_config.hidden_size


def _remaining_layers(values: Mapping[str, Any], plan: PruningPlan) -> dict[str, Any]:
    """The config's number of layers, and its lists with one entry per layer."""
    if plan.kept_layers is None:
        return {}
    found = {key: [values[key][i] for i in plan.kept_layers] for key in _PER_LAYER_LISTS if values.get(key)}
    if (first := values.get("max_window_layers")) is not None:  # the layers below it have full attention
        found["max_window_layers"] = sum(i < first for i in plan.kept_layers)
    return {"num_hidden_layers": len(plan.kept_layers), **found}


def _stock_problem(hidden_size: int, dims: list[dict[str, int]], family: Family) -> str:
    for index, layer in enumerate(dims):
        if layer != dims[0]:
            words = f"layer {index} has {_shape_words(layer)}, layer 0 {_shape_words(dims[0])}"
            return f"{words}; stock classes have one shape"
    if family.heads_divide_hidden and hidden_size % dims[0]["num_attention_heads"]:
        return f"{dims[0]['num_attention_heads']} heads do not divide the hidden size {hidden_size}"
    return ""


def _fits_alternative(model_config: Any, dims: list[dict[str, int]], alternative: str | None) -> bool:
    return alternative is not None and not has_biases(model_config) and _alike(dims)


def _alike(dims: list[dict[str, int]]) -> bool:
    return all(layer == dims[0] for layer in dims)


def _shape_words(layer: Mapping[str, int]) -> str:
    heads, groups, channels = layer["num_attention_heads"], layer["num_key_value_heads"], layer["intermediate_size"]
    return f"{heads} heads, {groups} KV heads, {channels} channels"


def _nearest_uniform(
    model_config: Any, dims: list[dict[str, int]], plan: PruningPlan, family: Family, alternative: str | None
) -> str:
    mean = {key: round(sum(layer[key] for layer in dims) / len(dims)) for key in dims[0]}
    n_rep = dims[0]["num_attention_heads"] // dims[0]["num_key_value_heads"]
    legal = list(range(1, 1 + min(layer["attention"].total for layer in plan.layers.values())))
    if family.heads_divide_hidden and not _fits_alternative(model_config, dims[:1], alternative):
        legal = [groups for groups in legal if not _hidden_size(model_config, plan) % (n_rep * groups)]
    if not legal:
        return "no uniform plan is legal: export 'auto' makes an own type"
    groups = min(legal, key=lambda count: (abs(count - mean["num_key_value_heads"]), -count))
    channels = min(layer["mlp"].total for layer in plan.layers.values())
    mean = _layer(n_rep * groups, groups, min(mean["intermediate_size"], channels))
    even = all(len({layer[kind].total for layer in plan.layers.values()}) == 1 for kind in ("attention", "mlp"))
    depth = len(plan.layers)
    flags = f" (--attention-layers 0:{depth} --mlp-layers 0:{depth} --uniform)" if even else ""
    free = plan.config.get("multiple_of", 1) == plan.config.get("tensor_parallel", 1) == 1
    return f"nearest legal plan: {_shape_words(mean) if free else 'one shape'} in every layer{flags}"
