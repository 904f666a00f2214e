"""Refuses settings that contradict each other, before any model is loaded; each by itself is checked by its field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import ConfigError
from ..registry import suggestion
from .settings import settings_of

if TYPE_CHECKING:
    from .pruner_config import MoreauPrunerConfig

TARGETS = ("attention", "mlp", "hidden", "layers")
UNITS = ("attention", "mlp")  # the targets to begin with
# How much is removed, in one of these: field → what it is of.
SIZES = {
    "pruning_ratio": "share of the parameters",
    "unit_ratio": "share of the units",
    "target_parameters": "parameters left",
    "target_bytes": "bytes left",
}
RUNTIMES_OF_UNIFORM_LAYERS = ("vllm", "llama.cpp")
MOST_TOKENS = 2**28  # of calibration windows: 2 GiB of ids
Bos = Literal["auto", "paper"]  # a segment that is measured begins as the tokenizer begins a text, or without BOS
BOS: tuple[Bos, ...] = get_args(Bos)


def validate(config: MoreauPrunerConfig) -> None:
    """Checks how the fields go together.

    Raises:
        ConfigError: names the field, its value, and what is allowed.
    """
    _validate_layers_and_targets(config)
    _validate_sizes(config)
    _validate_shapes(config)
    _validate_masks(config)
    _validate_budget(config)
    _validate_compensation(config)
    fitted = (config.compensation.windows or 0) + config.compensation.held_out
    read = {"calibration_samples": config.calibration_samples, "windows": fitted}
    for name, windows in read.items():
        if (tokens := windows * config.sequence_length) > MOST_TOKENS:
            asked = f"{windows:,} windows of {config.sequence_length:,} are {tokens:,} tokens"
            raise ConfigError(f"{name}: {asked}; {MOST_TOKENS:,} at most")


def check_bos(bos: str) -> None:
    """Raises ConfigError for what is no word of how a segment begins."""
    if bos not in BOS:
        raise ConfigError(f"bos: unknown '{bos}'.{suggestion(bos, BOS)} Known: {', '.join(BOS)}")


def _validate_layers_and_targets(config: MoreauPrunerConfig) -> None:
    for name, layers in _layer_ranges(config).items():
        if layers is not None and not 0 <= layers[0] < layers[1]:
            raise ConfigError(f"{name}: {layers!r} is not (start, end) with 0 <= start < end (end excluded)")
    if not config.targets or len({str(name) for name in config.targets}) != len(config.targets):
        raise ConfigError(f"targets: {config.targets!r} is not a list of distinct names of {', '.join(TARGETS)}")
    for target in config.targets:
        if target not in TARGETS:
            raise ConfigError(f"targets: unknown '{target}'.{suggestion(target, TARGETS)} Known: {', '.join(TARGETS)}")


def _layer_ranges(config: MoreauPrunerConfig) -> dict[str, Any]:
    return {one.name: getattr(config, one.name) for one in settings_of(config) if one.name.endswith("_layers")}


def _validate_sizes(config: MoreauPrunerConfig) -> None:
    given = [f"{name} ({words})" for name, words in SIZES.items() if getattr(config, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are both given; give one")
    shares = config.unit_ratio if isinstance(config.unit_ratio, tuple) else (config.unit_ratio,)
    if isinstance(config.unit_ratio, tuple) and len(shares) != len(config.targets):
        targets = ", ".join(config.targets)
        raise ConfigError(f"unit_ratio: {config.unit_ratio} is not one number, or one for each target ({targets})")
    for share in shares:
        if share is not None and (type(share) not in (int, float) or not 0 <= share < 1):
            raise ConfigError(f"unit_ratio: {share!r} is not a share in [0, 1); 20 % is 0.2")


def _validate_masks(config: MoreauPrunerConfig) -> None:
    """What concerns units is refused with a mask."""
    mask, budget = config.mask, config.budget
    if mask is None:
        return
    if given := [name for name in SIZES if getattr(config, name) is not None]:
        raise ConfigError(f"{given[0]}: concerns units; a mask of pattern '{mask.pattern}' takes sparsity instead")
    if not config.criterion.masks:
        raise ConfigError(
            f"criterion: '{config.criterion.name}' scores units, no single weights; a mask takes sparsegpt"
        )
    if mask.group is not None and budget.name == "global":
        raise ConfigError(f"mask_group: budget 'global' compares all; leave '{mask.group}' out")
    if config.multiple_of != 1:
        raise ConfigError("multiple_of: concerns units; a mask leaves every shape as it is")
    if not set(config.targets) <= {"attention", "mlp"}:
        raise ConfigError("targets: masks are of attention and mlp; leave hidden and layers out")
    if config.criterion.name == "sparsegpt" and mask.group == "row" and not mask.refine:
        raise ConfigError("mask_group: sparsegpt compares within blocks of 128 columns; leave it out")
    if budget.name != "uniform" and mask.structured:
        raise ConfigError(f"budget: '{mask.pattern}' gives every matrix the same share; leave '{budget.name}' out")
    if not budget.of_masks:
        raise ConfigError(f"budget: '{budget.name}' spreads units; a mask takes uniform, global, owl")
    if budget.protect:
        raise ConfigError("protect: concerns MLP channels, which a mask does not remove; leave it out")
    if budget.protect_outliers is not None:
        raise ConfigError("protect_outliers: concerns heads and channels, which a mask does not remove; leave it out")
    if config.criterion.name == "sparsegpt" and budget.name == "global" and not mask.refine:
        raise ConfigError("budget: sparsegpt decides within each matrix; use uniform or owl")


def _validate_budget(config: MoreauPrunerConfig) -> None:
    if config.budget.protect_outliers is None:
        return
    if "hidden" in config.targets:
        what = "is of heads and MLP channels, not of hidden ones"
        raise ConfigError(f"protect_outliers: {what}; leave hidden out of the targets")
    if not {"attention", "mlp"} & set(config.targets):
        raise ConfigError("protect_outliers: concerns heads and MLP channels, which are no targets; leave it out")


def _validate_compensation(config: MoreauPrunerConfig) -> None:
    compensation, budget = config.compensation, config.budget
    if compensation.fits and config.masks:
        raise ConfigError(f"compensation: '{compensation.name}' is for units; a mask takes update instead")
    if config.rounds > 1 and not budget.of_rounds:
        what = f"budget '{budget.name}' measures whole layers, not what a round left"
        raise ConfigError(f"rounds: {what}; take uniform, global or zscore")
    if config.rounds > 1 and (config.masks or not set(config.targets) <= {"attention", "mlp"}):
        raise ConfigError("rounds: only heads and MLP channels go in rounds; leave other targets and patterns out")


def _validate_shapes(config: MoreauPrunerConfig) -> None:
    reason = "uniform=True" if config.uniform else f"runtime '{config.runtime}'"
    if config.one_shape and config.budget.name != "uniform":
        what = f"budget '{config.budget.name}' makes layers of different shape"
        raise ConfigError(f"{what}, {reason} wants one; leave one out")
    if config.runtime in RUNTIMES_OF_UNIFORM_LAYERS and config.export == "custom":
        raise ConfigError(f"export 'custom' is an own model type, which {config.runtime} does not read; leave one out")
    if config.runtime == "llama.cpp" and config.tensor_parallel != 1:
        raise ConfigError("tensor_parallel: llama.cpp splits a model between layers or rows of any shape; leave it out")
    if config.fold_norms and "hidden" not in config.targets:
        raise ConfigError("fold_norms concerns hidden channels, which are not among the targets; leave it out")
    if config.criterion.layers != "sum" and "layers" not in config.targets:
        raise ConfigError("layer_criterion concerns whole layers, which are not among the targets; leave it out")
    by_unit = getattr(config.criterion, "channel_group", "row") == "unit"
    if by_unit and "hidden" in config.targets and len(config.targets) > 1:
        raise ConfigError("channel_group 'unit': hidden channels share weights with other units; use 'row'")


def resolved_layers(config: MoreauPrunerConfig, depth: int) -> dict[str, Any]:
    """The layer ranges in a model of so many layers, and what a runtime of uniform layers makes of a config.

    Raises:
        ConfigError: a range lies outside the model, or leaves layers out that such a runtime wants alike.
    """
    everywhere = (0, depth) if config.masks or config.budget.by_loss else None  # what a budget measures it decides on
    found: dict[str, Any] = {}
    for name, given in _layer_ranges(config).items():
        found[name] = _resolve_layers(name, given or everywhere, depth)
        if config.runtime not in RUNTIMES_OF_UNIFORM_LAYERS or name == "whole_layers":
            continue
        if given not in (None, (0, depth)) and name.removesuffix("_layers") in config.targets:
            leave = f"leave {given[0]}:{given[1]} out, or use 0:{depth}"
            raise ConfigError(f"{name}: {config.runtime} reads layers of one shape only; {leave}")
        found |= {name: (0, depth), "uniform": True, "export": "stock"}
    return found


def _resolve_layers(name: str, layers: tuple[int, int] | None, depth: int) -> tuple[int, int]:
    if layers is None:  # the paper's 4..29 of 32, scaled; at least one layer
        start = min(round(4 * depth / 32), depth - 1)
        return start, max(round(30 * depth / 32), start + 1)
    if layers[1] > depth:
        raise ConfigError(f"{name}: {layers[0]}:{layers[1]} lies outside the model's layers 0:{depth}")
    return layers
