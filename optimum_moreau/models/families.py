"""The table of model families: which matrices a unit spans, on which side, and what its config can hold.

A unit is what is removed whole. An attention unit is a query head or, under grouped-query attention, one KV head with
the query heads that read it: query head h belongs to KV head h // n_rep. An MLP unit is a channel of gate, up and down.
A hidden unit is a channel of the residual stream; a whole layer is a unit too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import UnsupportedModelError
from ..registry import suggestion

Kind = Literal["attention", "mlp", "hidden", "layers"]
CUSTOM_PREFIX = "moreau_"


@dataclass(frozen=True)
class Cut:
    """One matrix of a unit, or one part of a fused one.

    Attributes:
        module: its name inside the layer; of a hidden unit, inside the causal language model.
        side: units are blocks of rows (`out`) or of columns (`in`) of the `(out, in)` weight.
        part: index into `fused`.
        fused: the parts of a fused matrix in order, each holding all units; `query` is n_rep heads wide per unit,
            and the channels of `value` reach the next matrix without a norm, so that they may lie in any order.
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
        biases: of the attention and MLP matrices.
        bias_flags: the fields of the stock config that give o_proj and down_proj biases; `None`: it has not both.
        heads_divide_hidden: the stock config refuses head counts that do not divide the hidden size.
        stock_alternative: the model type that holds the same network where the stock config refuses (no biases).
        norms: kind of the norms on the residual stream.
        qk_norms: the queries and keys have norms of head width, which share the config's ε.
        adds: what o_proj and down_proj give is added to the residual stream, times the config's `residual_multiplier`
            where it has one; `False`: a norm is between.
        hidden_refusal: why hidden channels cannot be cut; empty where they can.
        notes: what is special, for `optimum-moreau families`.
    """

    model_type: str
    attention: tuple[Cut, ...]
    mlp: tuple[Cut, ...]
    biases: str = "none"
    bias_flags: tuple[str, str] | None = None
    heads_divide_hidden: bool = False
    stock_alternative: str | None = None
    norms: str = "RMS"
    qk_norms: bool = False
    adds: bool = True
    hidden_refusal: str = ""
    notes: str = ""

    @property
    def base_type(self) -> str:
        """The stock model type: this one, or the one that an own type extends."""
        return self.model_type.removeprefix(CUSTOM_PREFIX)

    @property
    def custom_type(self) -> str:
        """The own model type, whose layers may differ in shape."""
        return CUSTOM_PREFIX + self.base_type


_OUTPUT = Cut("self_attn.o_proj", "in")
_VALUE = Cut("self_attn.v_proj", "out", fused=("value",))
_ATTENTION = (Cut("self_attn.q_proj", "out"), Cut("self_attn.k_proj", "out"), _VALUE, _OUTPUT)
_QKV = ("query", "key", "value")
_FUSED_ATTENTION = (*(Cut("self_attn.qkv_proj", "out", part, _QKV) for part in range(3)), _OUTPUT)

_DOWN = Cut("mlp.down_proj", "in")
_MLP = (Cut("mlp.gate_proj", "out"), Cut("mlp.up_proj", "out"), _DOWN)
_FUSED_MLP = (*(Cut("mlp.gate_up_proj", "out", part, ("gate", "up")) for part in range(2)), _DOWN)
_NAMED_MLP = (Cut("mlp.c_fc", "out"), Cut("mlp.c_proj", "in"))
_PLAIN_MLP = (Cut("mlp.up_proj", "out"), _DOWN)

_BIAS_FLAGS, _USE_BIAS = ("attention_bias", "mlp_bias"), ("use_bias", "use_bias")
_DIVIDES = "heads must divide the hidden size"
_SLIDES = "sliding and full layers"
_FUSED = "fused gate, up"
_TWO, _PARALLEL = "MLP of two matrices", "attention and MLP in parallel"
_SCALED = "its embeddings are scaled by the square root of the hidden size"
_SUBTRACTED = "its norms subtract the mean of all channels, so no cut is exact"
_MEAN: dict[str, Any] = {"norms": "LayerNorm", "hidden_refusal": _SUBTRACTED}
_GEMMA: dict[str, Any] = {"biases": "optional", "hidden_refusal": _SCALED}

_STOCK = (
    Family("llama", _ATTENTION, _MLP, "optional", _BIAS_FLAGS, True, "mistral", notes=f"{_DIVIDES}, else mistral"),
    Family("mistral", _ATTENTION, _MLP),
    Family("ministral", _ATTENTION, _MLP, notes=_SLIDES),
    Family("qwen2", _ATTENTION, _MLP, "q, k, v"),
    Family("qwen3", _ATTENTION, _MLP, "optional", qk_norms=True),
    Family("gemma", _ATTENTION, _MLP, **_GEMMA),
    Family("gemma2", _ATTENTION, _MLP, heads_divide_hidden=True, adds=False, notes=f"{_DIVIDES}; {_SLIDES}", **_GEMMA),
    Family(
        "gemma3_text", _ATTENTION, _MLP, heads_divide_hidden=True, qk_norms=True, adds=False, notes=_DIVIDES, **_GEMMA
    ),
    Family("granite", _ATTENTION, _MLP, "optional", _BIAS_FLAGS),
    Family("smollm3", _ATTENTION, _MLP, "optional", _BIAS_FLAGS, notes="layers with and without RoPE"),
    Family("olmo", _ATTENTION, _MLP, "optional", notes="norms without weights", **_MEAN),
    Family("phi3", _FUSED_ATTENTION, _FUSED_MLP, notes="fused q, k, v and gate, up"),
    Family("cohere", _ATTENTION, _MLP, "optional", notes=_PARALLEL, **_MEAN),
    Family("cohere2", _ATTENTION, _MLP, "optional", notes=f"{_PARALLEL}; sliding layers", **_MEAN),
    Family("glm", _ATTENTION, _FUSED_MLP, "q, k, v", notes=_FUSED),
    Family("glm4", _ATTENTION, _FUSED_MLP, "q, k, v", adds=False, notes=_FUSED),
    Family("starcoder2", _ATTENTION, _NAMED_MLP, "all", _USE_BIAS, notes=_TWO, **_MEAN),
    Family("nemotron", _ATTENTION, _PLAIN_MLP, "optional", _BIAS_FLAGS, notes=_TWO, **_MEAN),
    Family("seed_oss", _ATTENTION, _MLP, "q, k, v", ("attention_out_bias", "mlp_bias")),
    Family("ernie4_5", _ATTENTION, _MLP, "optional", _USE_BIAS),
    Family("exaone4", _ATTENTION, _MLP, qk_norms=True, adds=False, notes="norms behind attention and MLP"),
    Family("hunyuan_v1_dense", _ATTENTION, _MLP, "optional", qk_norms=True),
    Family("apertus", _ATTENTION, _PLAIN_MLP, "optional", qk_norms=True, notes=_TWO),
    Family("arcee", _ATTENTION, _PLAIN_MLP, "optional", _BIAS_FLAGS, True, notes=f"{_TWO}; {_DIVIDES}"),
)
# The own types are families too: a pruned model can be pruned again.
FAMILIES = {row.model_type: row for stock in _STOCK for row in (stock, replace(stock, model_type=stock.custom_type))}

# Known to look alike, and refused with the reason.
REFUSED = {
    **dict.fromkeys(("olmo2", "olmo3"), "its q and k norms span all heads"),
    **dict.fromkeys(
        ("stablelm", "helium"), "it derives the head width from the hidden size, so fewer heads would be wider ones"
    ),
    "bitnet": "its weights are ternary, and a norm spans the MLP's channels",
    "diffllama": "its heads work in pairs",
}


def family_of(model_config: Any) -> Family:
    """Returns the family of a config; raises UnsupportedModelError for one not in the table, or that cannot be cut."""
    model_type = getattr(model_config, "model_type", None)
    if getattr(model_config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"'{model_type}' is an encoder-decoder; only decoder-only models can be pruned")
    if reason := _refusal(str(model_type), model_config):
        raise UnsupportedModelError(f"model type '{model_type}' cannot be pruned: {reason}")
    tower = getattr(getattr(model_config, "text_config", None), "model_type", None)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if tower in FAMILIES:
        words = f"is multi-modal; save its text model, a '{tower}', by itself, and prune that"
    else:
        words = f"is not supported.{suggestion(str(model_type), FAMILIES)} Supported: {', '.join(FAMILIES)}"
    raise UnsupportedModelError(f"model type '{model_type}' {words}")


def _refusal(model_type: str, model_config: Any) -> str | None:
    if model_type in REFUSED:
        return REFUSED[model_type]
    if any(getattr(model_config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "it is a mixture of experts, whose experts are not units here"
    rope = getattr(model_config, "rope_parameters", None) or {}
    if model_type.endswith("phi3") and rope.get("rope_type") == "longrope":
        return "its longrope factors are tied to the number of heads"
    if model_type.removeprefix(CUSTOM_PREFIX) == "cohere" and getattr(model_config, "use_qk_norm", False):
        return "with use_qk_norm its q and k norms have weights per head"
    return None
