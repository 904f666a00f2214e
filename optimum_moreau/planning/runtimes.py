"""What the runtimes that load a pruned model want of its shapes, from their documentation; loading there was not run.

vLLM splits every layer over `tensor_parallel` devices: the heads and the MLP's channels must divide evenly, and the KV
heads must divide evenly or be fewer, so that each is copied evenly (vLLM, QKVParallelLinear). transformers' own tensor
parallelism splits the KV heads without copies. llama.cpp quantises rows of 32 or 256 numbers: what a matrix reads must
be a multiple of 32 for any quantised type, of 256 for the K-quants (`multiple_of=256`).

Both derive some things from a layer's index, or from counts, where transformers reads the config; a plan that such an
runtime would read as another network is refused.

llama.cpp, `kinds_by_index`: its converter hands on neither the config's list of sliding layers nor that of layers
without RoPE, or its loader takes no list of them. It lets every n-th layer of a family be the other one; EXAONE 4
counts as sliding where it has 64 layers, else as full; and Ministral, where it is read as a Mistral, as full.

llama.cpp, `_DEEPEST`: queries are scaled by 1/√(head width), but by 1/√(hidden size / heads) at the depth of the
largest model, whatever the config's query_pre_attn_scalar.

llama.cpp, `_SQUARE`: q_proj and o_proj must be as wide as the hidden size, or the share of a head that rotates is
counted from hidden size / heads.

vLLM, `_SQUARE`: the head width is hidden size / heads in some of its model files, several of them old. It reads
`layer_types` layer by layer, but rotates every layer of an EXAONE 4 in which none slides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..config import MoreauPrunerConfig
from ..errors import PlanError
from ..models.units import Block, ModelShape
from .pruning_plan import PruningPlan, remaining

QUANTISED_ROW = 32
# The last of so many layers has full attention, the others slide (of SmolLM3: has no RoPE, the others have).
_PERIODS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "exaone4": 4, "smollm3": 4}
_DEPTH_OF_SLIDING = {"exaone4": 64}
_LAST = {"cohere2": "full without RoPE", "exaone4": "full without RoPE", "smollm3": "full without RoPE"}
_OTHERS = {"smollm3": "full"}
_FULL = ("ministral",)
_DEEPEST = {"gemma2": 46, "gemma3_text": 62}
_SQUARE = {
    "vllm": ("cohere", "cohere2", "olmo", "starcoder2"),
    "llama.cpp": ("qwen2", "phi3", "cohere", "cohere2", "olmo", "glm", "starcoder2", "nemotron"),
}


@dataclass(frozen=True)
class LegalCounts:
    """How many units of a block may go.

    Attributes:
        multiple_of: the MLP's channels that stay are a multiple of this, and the hidden ones.
        runtime: that must load the result.
        devices: over which the runtime splits every layer.
        hidden: the hidden size that the number of heads must divide; `None`: any number will do.
        heads: the number that must divide the hidden size; 1: any size will do.
    """

    multiple_of: int = 1
    runtime: str = "transformers"
    devices: int = 1
    hidden: int | None = None
    heads: int = 1

    @classmethod
    def of(cls, shape: ModelShape, config: MoreauPrunerConfig) -> LegalCounts:
        """The rules of a config for a model, whose hidden size is the one that is left."""
        width = shape.hidden.total if shape.hidden is not None else 0
        heads = {block.total * block.n_rep for block in shape.of("attention")}
        stock = config.export == "stock" and shape.heads_divide_hidden
        # where heads go too, their number is not known yet, and the Mistral class takes any
        stays = "attention" not in config.targets or shape.heads_divide_hidden
        fixed = shape.family.heads_divide_hidden and len(heads) == 1 and stays
        rules = width if stock and width else None, heads.pop() if fixed else 1
        return cls(config.multiple_of, config.runtime, config.tensor_parallel, *rules)

    def step(self, kind: str) -> int:
        """What stays, of channels, is a multiple of this."""
        row = QUANTISED_ROW if self.runtime == "llama.cpp" else 1
        own = {"hidden": self.heads, "mlp": self.devices}
        return math.lcm(self.multiple_of, row, own[kind]) if kind in own else 1

    def removable(self, block: Block) -> Sequence[int]:
        """Returns the numbers of units that may go, ascending; at least one unit always stays.

        Raises:
            PlanError: none is legal; says what would be.
        """
        if block.kind == "attention":
            return self._removable_groups(block)
        step = self.step(block.kind)
        if step > block.total:
            raise PlanError(
                f"{block.where}: no multiple of {step} can be kept of its {block.total} channels"
                f" ({self.reason(block.kind)}); lower multiple_of or tensor_parallel, or choose another runtime"
            )
        return range(block.total % step, block.total - step + 1, step)

    def reason(self, kind: str) -> str:
        """The rule in force for a kind, in words; empty if any number will do."""
        if kind == "attention":
            split = f"{self.runtime} splits heads over tensor_parallel={self.devices}" if self.devices > 1 else ""
            divide = f"the heads must divide the hidden size {self.hidden}" if self.hidden else ""
            return "; ".join(filter(None, (split, divide)))
        if self.step(kind) == 1:
            return ""
        parts = {
            f"multiple_of {self.multiple_of}": self.multiple_of > 1,
            f"the config wants a multiple of its {self.heads} heads": kind == "hidden" and self.heads > 1,
            f"tensor_parallel {self.devices}": kind == "mlp" and self.devices > 1,
            f"llama.cpp quantises rows of {QUANTISED_ROW}": self.runtime == "llama.cpp",
        }
        return ", ".join(words for words, applies in parts.items() if applies)

    def splits(self, block: Block, kept: int) -> bool:
        """Whether the runtime can split what stays of a block over its devices."""
        if block.kind == "attention":
            return _split(kept, block.n_rep, self.devices, self.runtime)
        return kept % self.devices == 0

    def check(self, kept: Mapping[Block, int]) -> None:
        """Refuses what stays of a model where the runtime could not split it, cut or not.

        Raises:
            PlanError: names the first block that the runtime could not split.
        """
        for block, count in kept.items():
            if not self.splits(block, count):
                heads = f"{count * block.n_rep} heads in {count} KV groups"
                raise PlanError(
                    f"{block.where}: {heads if block.kind == 'attention' else f'{count} channels'} cannot be split over"
                    f" tensor_parallel={self.devices}; add '{block.kind}' to the targets, or choose another number"
                )

    def _removable_groups(self, block: Block) -> Sequence[int]:
        heads = ((n, (block.total - n) * block.n_rep) for n in range(block.total))
        divides = [n for n, stay in heads if self.hidden is None or self.hidden % stay == 0]
        legal = [n for n in divides if self.splits(block, block.total - n)]
        if not legal:
            kept = range(1, block.total + 1)
            feasible = [n for n in range(1, 65) if any(_split(k, block.n_rep, n, self.runtime) for k in kept)]
            raise PlanError(
                f"{block.where}: no number of its {block.total} KV groups of {block.n_rep} heads can be taken:"
                f" {self.reason('attention')}; tensor_parallel may be {', '.join(map(str, feasible))}"
            )
        return legal


def _split(groups: int, n_rep: int, devices: int, runtime: str) -> bool:
    copied = runtime == "vllm" and devices % groups == 0
    return groups * n_rep % devices == 0 and (groups % devices == 0 or copied)


def kinds_by_index(family: str, depth: int) -> tuple[str, ...] | None:
    """The kinds of attention that llama.cpp gives so many layers of a stock model type; `None`: it derives none."""
    if family in _FULL or depth != _DEPTH_OF_SLIDING.get(family, depth):
        return ("full",) * depth
    if (period := _PERIODS.get(family)) is None:
        return None
    last, others = _LAST.get(family, "full"), _OTHERS.get(family, "sliding")
    return tuple(last if i % period == period - 1 else others for i in range(depth))


def check_derived(shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig) -> None:
    """Refuses a plan of a base model's shape whose result the runtime would read as another network.

    Raises:
        PlanError: says what the runtime derives, and what to leave out.
    """
    _check_width(shape, plan, config.runtime)
    stay = plan.kept_layers or tuple(sorted(plan.layers))
    kinds = tuple(shape.kinds[i] for i in stay) if shape.kinds else ()
    if config.runtime == "vllm" and shape.family.base_type == "exaone4" and set(kinds) == {"full without RoPE"}:
        raise PlanError(
            "layers: vllm rotates every layer of 'exaone4' where none has a sliding window, and only such ones would"
            " stay; leave 'layers' out of the targets"
        )
    if config.runtime != "llama.cpp":
        return
    family = shape.family.base_type
    expected = kinds_by_index(family, len(stay))
    if expected is not None and kinds and kinds != expected:
        where = next(n for n, pair in enumerate(zip(kinds, expected, strict=True)) if pair[0] != pair[1])
        words = f"layer {where}{' of those that would stay' * bool(plan.removed_layers)} is {kinds[where]}"
        raise PlanError(f"layers: {_pattern(family)}, but {words}; {_feasible(shape, plan)}")
    _check_scale(shape, plan, family, len(stay))


def check_before_scoring(shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig) -> None:
    """Refuses, before scoring, what only some scores would make a network that the runtime reads.

    The plan is the expected one, of so many layers as will go, but perhaps of others.

    Raises:
        PlanError: the layers' kinds follow their index, and which of them go is not known.
    """
    family, depth = shape.family.base_type, shape.depth - len(plan.removed_layers)
    if config.runtime != "llama.cpp" or not plan.removed_layers or not shape.kinds:
        return
    alike = len({*shape.kinds, *(kinds_by_index(family, depth) or shape.kinds)}) == 1
    follows = kinds_by_index(family, depth) is not None and not alike
    candidates = shape.in_scope(config, "layers")
    if follows and len(plan.removed_layers) < len(candidates):  # else these go, whatever their scores
        raise PlanError(f"layers: {_pattern(family)}, so they cannot go by their scores; {_feasible(shape, plan)}")


def _check_width(shape: ModelShape, plan: PruningPlan, runtime: str) -> None:
    family, rest = shape.family.base_type, remaining(plan, shape)
    if family not in _SQUARE.get(runtime, ()):
        return
    derived = f"{runtime} takes the head width of '{family}' to be the hidden size over its number of heads"
    if plan.hidden is not None and plan.hidden.removed:
        raise PlanError(f"hidden: {derived}, so hidden channels cannot go; leave 'hidden' out of the targets")
    for block in rest.of("attention"):
        if plan.kept(block).removed:
            raise PlanError(f"{block.where}: {derived}, so heads cannot go; leave 'attention' out of the targets")


def _check_scale(shape: ModelShape, plan: PruningPlan, family: str, depth: int) -> None:
    if family not in _DEEPEST or shape.hidden is None or shape.query_scale is None or shape.head_width is None:
        return
    rest = remaining(plan, shape)
    block = rest.of("attention")[0]
    heads = len(plan.kept(block).kept) * block.n_rep
    derived = rest.hidden.total // heads if depth == _DEEPEST[family] and rest.hidden else shape.head_width
    if derived == shape.query_scale:
        return
    leave = {"layers": bool(plan.removed_layers), "attention": bool(plan.kept(block).removed)}
    ways = [f"leave '{target}' out of the targets" for target, goes in leave.items() if goes]
    ways.append("use runtime 'transformers'")
    raise PlanError(
        f"attention: llama.cpp scales the queries of '{family}' by 1/√(head width), and by 1/√(hidden size / heads) at"
        f" {_DEEPEST[family]} layers: by 1/√{derived} what would stay, which wants 1/√{shape.query_scale:g};"
        f" {', or '.join(ways)}"
    )


def _pattern(family: str) -> str:
    if family in _FULL:
        return f"llama.cpp takes every layer of '{family}' to have full attention"
    at = f" at {_DEPTH_OF_SLIDING[family]} layers, and none at another depth" if family in _DEPTH_OF_SLIDING else ""
    last, others = _LAST.get(family, "full"), _OTHERS.get(family, "sliding")
    which = f"the last of every {_PERIODS[family]} layers of '{family}'"
    return f"llama.cpp takes {which} to be {last}, the others {others}{at}"


def _feasible(shape: ModelShape, plan: PruningPlan) -> str:
    """What would be read, in words."""
    family, instead = shape.family.base_type, "use runtime 'transformers'"
    if not plan.removed_layers or shape.kinds != kinds_by_index(family, shape.depth):
        return instead  # the whole model is misread
    ways = ["leave 'layers' out of the targets"]
    period = _PERIODS.get(family)
    if period is not None and family not in _DEPTH_OF_SLIDING and shape.depth > 2 * period:
        row = f"whole_layers {period}:{2 * period} with targets layers, unit_ratio 0.99"
        ways.append(f"let {period} in a row go ({row})")
    return f"{', '.join(ways)}, or {instead}"
