"""The table of model families: which rows and columns of which matrices make a unit.

A unit is what is removed whole. An attention unit is a query head or, under grouped-query attention, one KV head with
the query heads that read it: query head h belongs to KV head h // n_rep. An MLP unit is a channel of gate, up and down.
With n units in a layer, unit u owns the u-th of the n equal blocks of rows (`out`) or columns (`in`) of each matrix it
touches: with head width d and r query heads per KV head, r·d rows of q_proj, d rows of k_proj and v_proj, r·d columns
of o_proj; one row of gate_proj and up_proj, one column of down_proj.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .errors import UnsupportedModelError
from .registry import suggestion

if TYPE_CHECKING:
    from torch import nn

    from .config import MoreauPrunerConfig

Kind = Literal["attention", "mlp"]
CUSTOM_PREFIX = "moreau_"


@dataclass(frozen=True)
class Cut:
    """One matrix of a unit: its module inside the layer, and the side on which units are blocks."""

    module: str
    side: Literal["out", "in"]

    @property
    def dim(self) -> int:
        """The dimension of a `(out, in)` weight along which units lie."""
        return 0 if self.side == "out" else 1


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        model_type: as in config.json.
        attention: the matrices of an attention unit.
        mlp: the matrices of an MLP unit.
        heads_divide_hidden: the stock config refuses head counts that do not divide the hidden size.
        stock_alternative: the model type that holds the same network where the stock config refuses (no biases).
        notes: what is special, for `optimum-moreau families`.
    """

    model_type: str
    attention: tuple[Cut, ...]
    mlp: tuple[Cut, ...]
    heads_divide_hidden: bool = False
    stock_alternative: str | None = None
    notes: str = ""

    @property
    def base_type(self) -> str:
        """The stock model type: this one, or the one that an own type extends."""
        return self.model_type.removeprefix(CUSTOM_PREFIX)

    @property
    def custom_type(self) -> str:
        """The own model type whose layers differ in shape."""
        return CUSTOM_PREFIX + self.base_type

    def cuts(self, kind: Kind) -> tuple[Cut, ...]:
        """The matrices of a unit of this kind."""
        return self.attention if kind == "attention" else self.mlp


_ATTENTION = (
    Cut("self_attn.q_proj", "out"),
    Cut("self_attn.k_proj", "out"),
    Cut("self_attn.v_proj", "out"),
    Cut("self_attn.o_proj", "in"),
)
_MLP = (Cut("mlp.gate_proj", "out"), Cut("mlp.up_proj", "out"), Cut("mlp.down_proj", "in"))

_STOCK = (
    Family("llama", _ATTENTION, _MLP, True, "mistral", "stock only if the heads divide the hidden size; else mistral"),
    Family("mistral", _ATTENTION, _MLP),
    Family("qwen2", _ATTENTION, _MLP, notes="biases on q, k, v"),
    Family("qwen3", _ATTENTION, _MLP, notes="q and k norms of head width"),
)
# The own types are families too: a pruned model can be pruned again.
FAMILIES = {row.model_type: row for stock in _STOCK for row in (stock, replace(stock, model_type=stock.custom_type))}


def family_of(model_config: Any) -> Family:
    """Returns the family of a model's config.

    Raises:
        UnsupportedModelError: the model type is not in the table, or is an encoder-decoder.
    """
    model_type = getattr(model_config, "model_type", None)
    if getattr(model_config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"'{model_type}' is an encoder-decoder; only decoder-only models can be pruned")
    if model_type not in FAMILIES:
        hint = suggestion(str(model_type), FAMILIES)
        raise UnsupportedModelError(
            f"model type '{model_type}' is not supported.{hint} Supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


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
    """

    layer: int
    kind: Kind
    cuts: tuple[Cut, ...]
    total: int
    unit_parameters: int

    @property
    def where(self) -> str:
        """For messages: `layers.3.mlp`."""
        return f"layers.{self.layer}.{self.kind}"

    def weight_names(self) -> dict[Cut, str]:
        """Returns the parameter names of the unit's matrices in the causal language model."""
        return {cut: f"model.layers.{self.layer}.{cut.module}.weight" for cut in self.cuts}


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
        # One KV group is one unit; without grouped queries that is one head.
        totals: dict[Kind, int] = {
            "attention": layer_config.num_key_value_heads,
            "mlp": layer_config.intermediate_size,
        }
        for kind, total in totals.items():
            cuts = family.cuts(kind)
            parameters = 0
            for cut in cuts:
                module: Any = layer.get_submodule(cut.module)
                parameters += module.weight.numel() // total
                if cut.side == "out" and module.bias is not None:
                    parameters += module.bias.numel() // total
            yield Block(index, kind, cuts, total, parameters)
