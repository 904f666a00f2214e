"""Units of a model at hand: where each lies in the matrices it spans, and how many parameters it holds.

With n units in a layer, unit u owns the u-th of n equal blocks of rows (`out`) or columns (`in`) of each matrix it
spans: with head width d and r query heads per KV head, r·d rows of q_proj, d rows of k_proj and of v_proj, r·d columns
of o_proj; one row of gate_proj and of up_proj, one column of down_proj. In a fused matrix the parts follow each other,
each with its own n blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .config import MoreauPrunerConfig
from .errors import UnsupportedModelError
from .families import Cut, Family, Kind, family_of


def decoder_layers(model: Any) -> nn.ModuleList:
    """Returns the model's decoder layers.

    Raises:
        UnsupportedModelError: the model has no language-model head, so no next-token loss.
    """
    decoder = getattr(model, "model", None)
    if getattr(model, "lm_head", None) is None or decoder is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no LM head; load it with AutoModelForCausalLM")
    return decoder.layers


@dataclass(frozen=True)
class Block:
    """The units of one kind in one layer, all of one shape.

    Attributes:
        layer: index of the layer.
        kind: `attention` or `mlp`.
        cuts: the matrices the units span.
        total: number of units.
        unit_parameters: parameters that removing one unit removes, biases included.
        n_rep: query heads per KV head.
    """

    layer: int
    kind: Kind
    cuts: tuple[Cut, ...]
    total: int
    unit_parameters: int
    n_rep: int = 1

    @property
    def where(self) -> str:
        """For messages: `layers.3.mlp`."""
        return f"layers.{self.layer}.{self.kind}"

    def weight_names(self) -> dict[Cut, str]:
        """Returns the parameter names of the unit's matrices in the causal language model."""
        return {cut: f"model.layers.{self.layer}.{cut.module}.weight" for cut in self.cuts}

    def lines(self, cut: Cut, extent: int) -> Tensor:
        """Returns which rows (or columns) of a matrix each unit owns.

        Args:
            cut: one of the block's.
            extent: size of the matrix along the cut's side.

        Returns:
            int64 tensor `(units, width)` on CPU.
        """
        widths = [self.n_rep if part == "query" else 1 for part in cut.fused]
        scale = extent // (self.total * sum(widths))
        start = scale * self.total * sum(widths[: cut.part])
        width = scale * widths[cut.part]
        return start + torch.arange(self.total * width).view(self.total, width)

    def sum_per_unit(self, cut: Cut, elements: Tensor) -> Tensor:
        """Sums a weight-shaped `(out, in)` tensor over each unit's rows or columns: float64 `(units,)`."""
        line = elements.sum(dim=1 - cut.dim, dtype=torch.float64)  # (out,) or (in,)
        return line[self.lines(cut, len(line)).to(line.device)].sum(dim=1)

    def spread(self, cut: Cut, values: Tensor, like: Tensor) -> Tensor:
        """Returns a tensor that broadcasts against the weight `like`: each unit's value on its lines, 1 elsewhere."""
        line = torch.ones(like.shape[cut.dim], dtype=values.dtype, device=like.device)
        line[self.lines(cut, len(line)).to(like.device)] = values.to(like.device)[:, None]
        return line[:, None] if cut.dim == 0 else line[None, :]


@dataclass(frozen=True)
class ModelShape:
    """What can be cut in a model, read off its modules; weights may be on the meta device.

    Attributes:
        family: the model's row of the table.
        blocks: every block of the model, by layer, attention first.
        parameters: number of parameters, tied ones counted once.
    """

    family: Family
    blocks: tuple[Block, ...]
    parameters: int

    @cached_property
    def depth(self) -> int:
        """Number of layers."""
        return 1 + max(block.layer for block in self.blocks)

    def in_scope(self, config: MoreauPrunerConfig) -> tuple[Block, ...]:
        """Returns the blocks a resolved config may cut."""
        ranges = {"attention": config.attention_layers, "mlp": config.mlp_layers}
        return tuple(
            block
            for block in self.blocks
            if block.kind in config.targets and (layers := ranges[block.kind]) and layers[0] <= block.layer < layers[1]
        )


def model_shape(model: Any) -> ModelShape:
    """Reads off a causal language model what can be cut.

    Args:
        model: a `PreTrainedModel` of a supported family, on any device (meta included).

    Raises:
        UnsupportedModelError: the model's type is not in the table, or it has no LM head.
    """
    family = family_of(model.config)
    layers = decoder_layers(model)
    blocks = tuple(_blocks(family, model.config, layers))
    return ModelShape(family, blocks, sum(parameter.numel() for parameter in model.parameters()))


def _blocks(family: Family, model_config: Any, layers: nn.ModuleList) -> Iterator[Block]:
    for index, layer in enumerate(layers):
        layer_config = model_config.per_layer_config[index]
        groups = layer_config.num_key_value_heads  # one KV group is one unit; without grouped queries that is one head
        attention = Block(index, "attention", family.attention, groups, 0, layer_config.num_attention_heads // groups)
        mlp = Block(index, "mlp", family.mlp, layer_config.intermediate_size, 0)
        for block in (attention, mlp):
            yield replace(block, unit_parameters=sum(_unit_parameters(block, cut, layer) for cut in block.cuts))


def _unit_parameters(block: Block, cut: Cut, layer: nn.Module) -> int:
    module: Any = layer.get_submodule(cut.module)
    bias = cut.side == "out" and module.bias is not None
    width = block.lines(cut, module.weight.shape[cut.dim]).shape[1]
    return width * (module.weight.shape[1 - cut.dim] + bias)
