"""Units of a model at hand: where each lies in the matrices it spans, and how many parameters it holds.

With n units in a layer, unit u owns the u-th of n equal blocks of rows (`out`) or columns (`in`) of each matrix it
spans: with head width d and r query heads per KV head, r·d rows of q_proj, d rows of k_proj and of v_proj, r·d columns
of o_proj; one row of gate_proj and of up_proj, one column of down_proj. In a fused matrix the parts follow each other,
each with its own n blocks.

A hidden unit owns one column of the embeddings, of the LM head and of every matrix that reads the residual stream, one
row of every matrix that writes to it, and one entry of every norm on it. A layer is one unit, with all it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MoreauPrunerConfig
from ..config.validation import UNITS
from ..errors import UnsupportedModelError
from .families import Cut, Family, Kind, family_of

# Names in the causal language model, the same in every family.
EMBEDDINGS, LAYERS, FINAL_NORM, HEAD = "model.embed_tokens", "model.layers.", "model.norm", "lm_head"


def decoder_layers(model: Any) -> nn.ModuleList:
    """Returns the model's decoder layers; raises UnsupportedModelError without an LM head, so no next-token loss."""
    decoder = getattr(model, "model", None)
    if getattr(model, "lm_head", None) is None or decoder is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no LM head; load it with AutoModelForCausalLM")
    return decoder.layers


@dataclass(frozen=True)
class Block:
    """The units of one kind in one layer, or of the whole model, all of one shape.

    Attributes:
        layer: index of the layer; `None`: the whole model.
        kind: `attention`, `mlp`, `hidden` or `layers`.
        cuts: the matrices the units span.
        total: number of units.
        unit_parameters: parameters that removing one unit removes, biases included.
        unit_lines: how many of these belong to each hidden channel: rows and columns of hidden width in the unit.
        n_rep: query heads per KV head.
        vectors: modules with one parameter per unit that is cut along but not scored (norms on the residual stream).
        biased: its reader has a bias.
    """

    layer: int | None
    kind: Kind
    cuts: tuple[Cut, ...]
    total: int
    unit_parameters: int
    unit_lines: int = 0
    n_rep: int = 1
    vectors: tuple[str, ...] = ()
    biased: bool = False

    @property
    def where(self) -> str:
        """For messages, and the names of scores: `layers.3.mlp`, `layers.3`, `hidden`."""
        if self.layer is None:
            return self.kind
        return f"layers.{self.layer}" + (f".{self.kind}" if self.kind != "layers" else "")

    @property
    def reader(self) -> Cut:
        """The matrix that units own columns of: o_proj, down_proj."""
        return next(cut for cut in self.cuts if cut.side == "in")

    @property
    def writers(self) -> tuple[Cut, ...]:
        """The parts that write the channels which the reader reads, whatever their order: of attention the values."""
        parts = [cut for cut in self.cuts if cut.side == "out"]
        return tuple(cut for cut in parts if self.kind == "mlp" or cut.fused[cut.part] == "value")

    def weight_names(self) -> dict[Cut, str]:
        """Returns the parameter names of the unit's matrices in the causal language model."""
        prefix = "" if self.layer is None else f"{LAYERS}{self.layer}."
        return {cut: f"{prefix}{cut.module}.weight" for cut in self.cuts}

    def lines(self, cut: Cut, extent: int, device: torch.device | None = None) -> Tensor:
        """Returns which of the `extent` rows (or columns) of a matrix each unit owns: int64 `(units, width)`."""
        widths = [self.n_rep if part == "query" else 1 for part in cut.fused]
        scale = extent // (self.total * sum(widths))
        start = scale * self.total * sum(widths[: cut.part])
        width = scale * widths[cut.part]
        return start + torch.arange(self.total * width, dtype=torch.int64, device=device).view(self.total, width)

    def sum_per_unit(self, cut: Cut, elements: Tensor) -> Tensor:
        """Sums a weight-shaped `(out, in)` tensor over each unit's rows or columns: float64 `(units,)`."""
        line = elements.sum(dim=1 - cut.dim, dtype=torch.float64)  # (out,) or (in,)
        return line[self.lines(cut, len(line), line.device)].sum(dim=1)

    def spread(self, cut: Cut, values: Tensor, like: Tensor) -> Tensor:
        """Returns a tensor that broadcasts against the weight `like`: each unit's value on its lines, 1 elsewhere."""
        line = torch.ones(like.shape[cut.dim], dtype=values.dtype, device=like.device)
        line[self.lines(cut, len(line), like.device)] = values.to(like.device)[:, None]
        return line[:, None] if cut.dim == 0 else line[None, :]


@dataclass(frozen=True)
class ModelShape:
    """What can be cut in a model, read off its modules; weights may be on the meta device.

    Attributes:
        family: the model's row of the table.
        blocks: heads and channels of every layer, by layer, attention first.
        parameters: number of parameters, tied ones counted once.
        bytes: that they take in the model's dtype.
        wholes: every layer as one unit.
        hidden: the channels of the residual stream.
        heads_divide_hidden: no stock class holds head counts that do not divide the hidden size.
        kinds: of attention, `full`, `sliding` or `full without RoPE`, of each layer of the whole model.
        query_scale: the queries are scaled by 1/√ of it, where the config says so.
        head_width: d.
    """

    family: Family
    blocks: tuple[Block, ...]
    parameters: int
    bytes: int = 0
    wholes: tuple[Block, ...] = ()
    hidden: Block | None = None
    heads_divide_hidden: bool = False
    kinds: tuple[str, ...] = ()
    query_scale: float | None = None
    head_width: int | None = None

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.blocks) // 2

    @property
    def without_bias(self) -> dict[Kind, str]:
        """Kind → the matrix of a layer that reads its units, and has no bias in some layer: o_proj, down_proj."""
        return {block.kind: block.reader.module for block in self.blocks if not block.biased}

    def without_layers(self, gone: Collection[int]) -> ModelShape:
        """The shape once whole layers are gone; those that stay keep their indices."""
        lost = [whole for whole in self.wholes if whole.layer in gone]
        lines = sum(whole.unit_lines for whole in lost)
        return replace(
            self,
            blocks=tuple(block for block in self.blocks if block.layer not in gone),
            wholes=tuple(whole for whole in self.wholes if whole.layer not in gone),
            parameters=self.parameters - sum(whole.unit_parameters for whole in lost),
            hidden=self.hidden and replace(self.hidden, unit_parameters=self.hidden.unit_parameters - lines),
        )

    def narrowed(self, channels: int) -> ModelShape:
        """The shape once so many hidden channels are gone."""
        if self.hidden is None or not channels:
            return self

        def narrow(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
            return tuple(replace(b, unit_parameters=b.unit_parameters - channels * b.unit_lines) for b in blocks)

        return replace(
            self,
            blocks=narrow(self.blocks),
            wholes=narrow(self.wholes),
            parameters=self.parameters - channels * self.hidden.unit_parameters,
            hidden=replace(self.hidden, total=self.hidden.total - channels),
        )

    def of(self, kind: Kind) -> list[Block]:
        """The blocks of heads (`attention`) or of channels (`mlp`), by layer."""
        return [block for block in self.blocks if block.kind == kind]

    def in_scope(self, config: MoreauPrunerConfig, *kinds: str) -> tuple[Block, ...]:
        """Returns the blocks a resolved config may cut: heads and channels by layer, then whole layers, then hidden.

        Of some `kinds` alone where they are given. Raises UnsupportedModelError where hidden channels are asked for,
        and the family's cannot be cut.
        """
        ranges = {"attention": config.attention_layers, "mlp": config.mlp_layers, "layers": config.whole_layers}
        blocks = [*self.blocks, *self.wholes]
        found = [b for b in blocks if b.kind in config.targets and _inside(b.layer, ranges[b.kind])]
        if "hidden" in config.targets:
            if self.family.hidden_refusal or self.hidden is None:
                name, reason = self.family.base_type, self.family.hidden_refusal
                raise UnsupportedModelError(f"hidden channels of '{name}' cannot be cut: {reason}; use other targets")
            found.append(self.hidden)
        return tuple(block for block in found if not kinds or block.kind in kinds)

    def scored(self, config: MoreauPrunerConfig) -> tuple[Block, ...]:
        """Returns the blocks whose units a criterion scores: those in scope, and what a layer's score is the sum of."""
        scope = list(self.in_scope(config, *UNITS, "hidden"))
        if "layers" in config.targets and config.criterion.layers == "sum":
            scope += [b for b in self.blocks if _inside(b.layer, config.whole_layers) and b not in scope]
        return tuple(sorted(scope, key=lambda b: (b.layer is None, b.layer, b.kind)))


def model_shape(model: Any) -> ModelShape:
    """Reads off a causal language model, on any device (meta included), what can be cut.

    Raises:
        UnsupportedModelError: the model's type is not in the table, or it has no LM head.
    """
    family = family_of(model.config)
    layers = decoder_layers(model)
    hidden = _hidden(family, model, layers)
    return ModelShape(
        family,
        tuple(_blocks(family, model.config, layers)),
        *size_of(model),
        tuple(_whole(index, model, hidden) for index in range(len(layers))),
        replace(hidden, unit_parameters=_per_channel(hidden, model)),
        family.heads_divide_hidden and (family.stock_alternative is None or has_biases(model.config)),
        _kinds(model.config, len(layers)),
        getattr(model.config, "query_pre_attn_scalar", None),
        getattr(model.config, "head_dim", None),
    )


def size_of(model: nn.Module) -> tuple[int, int]:
    """The number of parameters, tied ones counted once, and the bytes that they take."""
    parameters = list(model.parameters())
    return sum(one.numel() for one in parameters), sum(one.numel() * one.element_size() for one in parameters)


def has_biases(model_config: Any) -> bool:
    """Whether the attention or the MLP of a LLaMA has biases, which the Mistral class has not."""
    return any(getattr(model_config, name, False) for name in ("attention_bias", "mlp_bias"))


def _inside(index: int | None, layers: tuple[int, int] | None) -> bool:
    return index is not None and layers is not None and layers[0] <= index < layers[1]


def _kinds(model_config: Any, depth: int) -> tuple[str, ...]:
    types = getattr(model_config, "layer_types", None) or ["full_attention"] * depth
    rotated = getattr(model_config, "no_rope_layers", None) or [1] * depth  # despite its name, 1 where there is RoPE
    # cohere2 and exaone4 rotate where a window slides; exaone4 everywhere, where none does
    sliding_only = family_of(model_config).base_type in ("cohere2", "exaone4") and model_config.sliding_window
    slides = [kind == "sliding_attention" for kind in types]
    return tuple(
        ("sliding" if slid else "full") + ("" if rotates and (slid or not sliding_only) else " without RoPE")
        for slid, rotates in zip(slides, rotated, strict=True)
    )


def _blocks(family: Family, model_config: Any, layers: nn.ModuleList) -> Iterator[Block]:
    for index, layer in enumerate(layers):
        layer_config = model_config.per_layer_config[index]
        groups = layer_config.num_key_value_heads  # one KV group is one unit; without grouped queries that is one head
        n_rep = layer_config.num_attention_heads // groups
        attention = Block(index, "attention", family.attention, groups, 0, n_rep=n_rep)
        for block in (attention, Block(index, "mlp", family.mlp, layer_config.intermediate_size, 0)):
            modules: dict[Cut, Any] = {cut: layer.get_submodule(cut.module) for cut in block.cuts}
            # rows and columns of a unit, all of hidden width
            widths = {cut: block.lines(cut, one.weight.shape[cut.dim]).shape[1] for cut, one in modules.items()}
            lines, biased = sum(widths.values()), {cut for cut, one in modules.items() if one.bias is not None}
            biases = sum(widths[cut] for cut in biased if cut.side == "out")
            parameters = lines * model_config.hidden_size + biases
            yield replace(block, unit_parameters=parameters, unit_lines=lines, biased=block.reader in biased)


def _hidden(family: Family, model: Any, layers: nn.ModuleList) -> Block:
    """The channels of the residual stream: matrices on their residual side, and the norms beside attention and MLP."""
    flipped = {"out": "in", "in": "out"}
    cuts = [Cut(EMBEDDINGS, "in")]
    vectors = []
    for index, layer in enumerate(layers):
        sides = {cut.module: cut.side for cut in (*family.attention, *family.mlp)}  # a fused matrix once
        cuts += [Cut(f"{LAYERS}{index}.{name}", flipped[side]) for name, side in sides.items()]  # type: ignore[arg-type]
        vectors += [f"{LAYERS}{index}.{name}" for name, module in layer.named_children() if _has_weight(module)]
    if _has_weight(model.get_submodule(FINAL_NORM)):
        vectors.append(FINAL_NORM)
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        cuts.append(Cut(HEAD, "in"))
    return Block(None, "hidden", tuple(cuts), model.config.hidden_size, 0, vectors=tuple(vectors))


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _whole(index: int, model: Any, hidden: Block) -> Block:
    prefix = f"{LAYERS}{index}."
    cuts = tuple(cut for cut in hidden.cuts if cut.module.startswith(prefix))
    vectors = tuple(name for name in hidden.vectors if name.startswith(prefix))
    lines = _per_channel(replace(hidden, cuts=cuts, vectors=vectors), model)
    parameters = sum(parameter.numel() for parameter in decoder_layers(model)[index].parameters())
    return Block(index, "layers", (), 1, parameters, lines)


def _per_channel(hidden: Block, model: nn.Module) -> int:
    """Parameters of its matrices, of their biases on the residual side, and of its norms, for one hidden channel."""
    found = sum(len(list(model.get_submodule(name).parameters())) for name in hidden.vectors)
    for cut in hidden.cuts:
        module: Any = model.get_submodule(cut.module)
        found += module.weight.shape[1 - cut.dim] + (cut.side == "out" and module.bias is not None)
    return found
