"""Applies a plan to a model in place: cuts the matrices, and turns the model into the class that holds its new shape.

What else must change with a shape (head counts, `num_key_value_groups`, `in_features`, config references, the classes
of an export) is not listed per family: a twin of the pruned model is built on the meta device from the new config, by
transformers' own constructors, and every module takes over class, plain attributes and the buffers that no checkpoint
holds from its twin. So a model pruned in memory is what a reload of its checkpoint builds.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..models.buffers import built_from, take_over
from ..models.families import Cut
from ..models.placement import check_loaded, hook_again, loaded, prepare_offloaded, replace_parameter, tie
from ..models.undisturbed import undisturbed
from ..models.units import LAYERS, Block, ModelShape, decoder_layers, model_shape
from ..planning import PruningPlan
from .export import Export, decide_export, pruned_config

logger = logging.getLogger(__name__)

# On a model that was cut, how many parameters its base had: a plain number, which copies and pickles carry along.
BASE_PARAMETERS = "parameters_of_base"
_WRAPPERS = {
    "DistributedDataParallel": "prune model.module before wrapping",
    "DataParallel": "prune model.module before wrapping",
    "FullyShardedDataParallel": "prune before wrapping in FSDP",
    "OptimizedModule": "prune model._orig_mod, then compile",
}


@undisturbed()
def apply_plan(model: nn.Module, plan: PruningPlan, export: str | None = None) -> str:
    """In place: removes what the plan does not keep, and rewrites the model's config and class.

    Args:
        model: the base model the plan was made for; on success it is the pruned model.
        plan: what stays.
        export: `stock`, `custom`, or `auto` (stock wherever a class of transformers holds the shapes); default: what
            the plan was made with.

    Returns:
        The export taken: the model type of the result.

    Raises:
        UnsupportedModelError: the model is wrapped, quantised, sharded, not loaded or of another family.
        PlanError: the plan is for another model; names the first mismatch.
        ExportError: no stock class holds the shapes; names the nearest legal ones. The model is unchanged on any error.
    """
    check_prunable(model)
    prepare_offloaded(model)
    shape = model_shape(model)
    plan.check_matches(model, shape)
    decided = decide_export(model.config, shape, plan, export or plan.config.get("export", "auto"), coming=False)
    cut_in_place(model, shape, plan, decided)
    return decided.model_type


def cut_in_place(model: nn.Module, shape: ModelShape, plan: PruningPlan, export: Export) -> None:
    """In place: removes what a plan does not keep; the plan was checked against the model, and the export decided.

    The shape is that of the base model, which may have got the biases of an intercept meanwhile.
    """
    prepare_offloaded(model)  # the passes since untied its weights
    config = pruned_config(model.config, shape, plan, export)
    if export.by_need:
        logger.warning("%s", export.by_need)
    _put_right(config, model)
    twin = built_from(config, model.dtype)  # type: ignore[arg-type]
    layers = decoder_layers(model)
    for block in shape.blocks:
        if plan.kept(block).removed and block.layer is not None and block.layer not in plan.removed_layers:
            _cut(layers[block.layer], block, plan.kept(block).kept)
    for index in reversed(plan.removed_layers):
        del layers[index]
    if plan.hidden is not None and shape.hidden is not None:
        _cut_hidden(model, shape.hidden, plan)
    _take_over(model, twin)
    if plan.removes and not hasattr(model, BASE_PARAMETERS):
        setattr(model, BASE_PARAMETERS, shape.parameters)


def check_prunable(model: Any) -> None:
    """Raises UnsupportedModelError, saying what to pass instead, for what is wrapped, quantised, sharded or empty."""
    name = type(model).__name__
    wrapped = _WRAPPERS.get("FullyShardedDataParallel" if name.startswith("FSDP") else name)
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    adapted, config = hasattr(model, "peft_config"), getattr(model, "config", None)
    quantised = getattr(model, "is_quantized", False) or getattr(config, "quantization_config", None)
    load = "pass a transformers model, loaded with AutoModelForCausalLM"
    for found, words in (
        (wrapped, f": a wrapped model cannot be pruned; {wrapped}"),
        (not isinstance(model, nn.Module), f" is not a model; {load}"),
        (adapted, ": carries adapters; prune the merged model: model = peft_model.merge_and_unload()"),
        (compiled, ": is compiled (model.compile()); prune it first, then compile"),
        (config is None, f" has no config; {load}"),
        (quantised, " is quantised; load it in bfloat16, prune, and quantise the result"),
    ):
        if found:
            raise UnsupportedModelError(f"{name}{words}")
    for parameter_name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or hasattr(parameter, "ds_id"):  # FSDP2, tensor parallel; ZeRO-3
            raise UnsupportedModelError(f"{parameter_name} is sharded over processes; prune before sharding")
    check_loaded(model)


def _put_right(config: Any, model: Any) -> None:
    """In place: a config that says tied of weights that are not would make another network of them elsewhere."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if config.tie_word_embeddings and head.weight is not embedding.weight and not head.weight.is_meta:
        config.tie_word_embeddings = torch.equal(head.weight, embedding.weight)


def _cut(layer: nn.Module, block: Block, kept: tuple[int, ...]) -> None:
    lines: dict[str, list[Tensor]] = {}
    for cut in block.cuts:
        module: Any = layer.get_submodule(cut.module)
        lines.setdefault(cut.module, []).append(block.lines(cut, module.weight.shape[cut.dim])[list(kept)].flatten())
    for cut in {cut.module: cut for cut in block.cuts}.values():  # a fused matrix is cut once
        _select_lines(layer.get_submodule(cut.module), cut, torch.cat(lines[cut.module]))


def _cut_hidden(model: nn.Module, hidden: Block, plan: PruningPlan) -> None:
    """Cuts every parameter that has one row, column or entry per channel; tied ones once."""
    assert plan.hidden is not None  # the caller's branch
    kept = torch.tensor(plan.hidden.kept, dtype=torch.int64, device="cpu")
    renumbered = {old: new for new, old in enumerate(plan.kept_layers or plan.layers)}
    tied = model.lm_head.weight is model.model.embed_tokens.weight  # type: ignore[union-attr]
    # √(D/D′)·w and ε·D/D′ keep the averages over the D original channels: the D − D′ cut ones count as zeros
    fold = math.sqrt(plan.hidden.total / len(kept)) if plan.config.get("fold_norms") else 1.0

    for cut in hidden.cuts:
        if (module := _moved(model, cut.module, renumbered)) is not None:
            _select_lines(module, cut, kept)
    for name in hidden.vectors:
        if (module := _moved(model, name, renumbered)) is not None:
            _select(module, "weight", 0, kept, times=fold)
    if tied:
        tie(model.lm_head, model.model.embed_tokens)  # type: ignore[arg-type, union-attr]


def _moved(model: nn.Module, name: str, renumbered: dict[int, int]) -> Any:
    """The module that bore a name before layers went; `None` if it went with them."""
    if not name.startswith(LAYERS):
        return model.get_submodule(name)
    index, rest = name.removeprefix(LAYERS).split(".", 1)
    return model.get_submodule(f"{LAYERS}{renumbered[int(index)]}.{rest}") if int(index) in renumbered else None


def _select_lines(module: Any, cut: Cut, index: Tensor) -> None:
    """Cuts a matrix, and its bias where that lies along the same side."""
    _select(module, "weight", cut.dim, index)
    if cut.side == "out" and module.bias is not None:
        _select(module, "bias", 0, index)


def _select(module: nn.Module, name: str, dim: int, index: Tensor, times: float = 1.0) -> None:
    values = loaded(module, name)
    replace_parameter(module, name, values.index_select(dim, index.to(values.device)).mul_(times))


def _take_over(model: nn.Module, twin: nn.Module) -> None:
    for (name, module), (_, pattern) in zip(model.named_modules(), list(twin.named_modules()), strict=True):
        for parameter_name, parameter in module.named_parameters(recurse=False):
            expected = getattr(pattern, parameter_name).shape
            if parameter.shape != expected:  # a wrong row of the family table, never the user's mistake
                raise AssertionError(f"{name}.{parameter_name}: {tuple(parameter.shape)}, expected {tuple(expected)}")
        module.__class__ = type(pattern)
        take_over(module, pattern)
        hook_again(module)
