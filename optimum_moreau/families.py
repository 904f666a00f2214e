"""The table of model families: which matrices a unit spans, on which side, and what its config can hold.

A unit is what is removed whole. An attention unit is a query head or, under grouped-query attention, one KV head with
the query heads that read it: query head h belongs to KV head h // n_rep. An MLP unit is a channel of gate, up and down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from .errors import UnsupportedModelError
from .registry import suggestion

Kind = Literal["attention", "mlp"]
CUSTOM_PREFIX = "moreau_"


@dataclass(frozen=True)
class Cut:
    """One matrix of a unit, or one part of a fused one.

    Attributes:
        module: its name inside the layer.
        side: units are blocks of rows (`out`) or of columns (`in`) of the `(out, in)` weight.
        part: index into `fused`.
        fused: the parts of a fused matrix in order, each holding all units; `query` is n_rep heads wide per unit.
    """

    module: str
    side: Literal["out", "in"]
    part: int = 0
    fused: tuple[str, ...] = ("all",)

    @property
    def dim(self) -> int:
        """The dimension of the weight along which units lie."""
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
        """The own model type, whose layers may differ in shape."""
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
