"""What llama.cpp and vLLM derive from a layer's index, or from counts, where transformers reads the config.

Read off their sources; a plan that such an engine would read as another network is refused.

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

from ..config import MoreauPrunerConfig
from ..errors import PlanError
from ..models.units import ModelShape
from .gains import remaining
from .pruning_plan import PruningPlan

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


def kinds_by_index(family: str, depth: int) -> tuple[str, ...] | None:
    """The kinds of attention that llama.cpp gives the layers of a model; `None`: it derives none.

    Args:
        family: stock model type.
        depth: number of layers.
    """
    if family in _FULL or depth != _DEPTH_OF_SLIDING.get(family, depth):
        return ("full",) * depth
    if (period := _PERIODS.get(family)) is None:
        return None
    last, others = _LAST.get(family, "full"), _OTHERS.get(family, "sliding")
    return tuple(last if i % period == period - 1 else others for i in range(depth))


def check_derived(shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig) -> None:
    """Refuses a plan whose result the engine would read as another network.

    Args:
        shape: of the base model.
        plan: what stays of it.
        config: resolved.

    Raises:
        PlanError: says what the engine derives, and what to leave out.
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


def check_foreseen(shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig) -> None:
    """Refuses, before scoring, what only some scores would make a network that the engine reads.

    Args:
        shape: of the base model.
        plan: the expected one, of so many layers as will go, but perhaps of others.
        config: resolved.

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


def _check_width(shape: ModelShape, plan: PruningPlan, engine: str) -> None:
    family, rest = shape.family.base_type, remaining(plan, shape)
    if family not in _SQUARE.get(engine, ()):
        return
    derived = f"{engine} takes the head width of '{family}' to be the hidden size over its number of heads"
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
    last = _LAST.get(family, "full")
    others = _OTHERS.get(family, "sliding")
    kinds = f"to be {last}, the others {others}{at}"
    return f"llama.cpp takes the last of every {_PERIODS[family]} layers of '{family}' {kinds}"


def _feasible(shape: ModelShape, plan: PruningPlan) -> str:
    """What would be read, in words."""
    family, instead = shape.family.base_type, "use runtime 'transformers'"
    if not plan.removed_layers or shape.kinds != kinds_by_index(family, shape.depth):
        return instead  # the whole model is misread
    ways = ["leave 'layers' out of the targets"]
    period = _PERIODS.get(family)
    if period is not None and family not in _DEPTH_OF_SLIDING and shape.depth > 2 * period:
        ways.append(
            f"let {period} in a row go (whole_layers {period}:{2 * period} with targets layers, unit_ratio 0.99)"
        )
    return f"{', '.join(ways)}, or {instead}"
