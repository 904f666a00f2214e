"""Refuses settings that are out of their range or contradict each other, before any model is loaded."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..registry import COMPENSATIONS, CRITERIA, suggestion

if TYPE_CHECKING:
    from .pruner_config import MoreauPrunerConfig

TARGETS = ("attention", "mlp", "hidden", "layers")
UNITS = ("attention", "mlp")  # the targets to begin with
CHOICES: dict[str, tuple[str | None, ...]] = {
    "budget": ("uniform", "global", "cosine", "owl", "zscore", "search"),
    "mask_group": ("row", "layer", None),
    "refine": ("dsnot", "r2-dsnot", None),
    "aggregation": ("sum", "mean", "max", "prod"),
    "noise": ("relative", "absolute"),
    "channel_group": ("row", "unit"),
    "reduction": ("gradient", "importance"),
    "layer_criterion": ("sum", "block-influence"),
    "engine": ("transformers", "vllm", "llama.cpp"),
    "state_dtype": ("float32", "bfloat16"),
    "offload": ("cpu", "disk", None),
    "export": ("auto", "stock", "custom"),
    "schedule": ("cubic", "linear"),
}
BUDGETS_OF_MASKS = ("uniform", "global", "owl")
_POSITIVE = (
    "rho", "relative_rho", "step_size", "sigma", "eta", "norm_order", "damping", "learning_rate", "ridge",
)  # fmt: skip
_WEIGHTS = ("alpha", "exponent", "input_weight", "output_weight")
# Whole numbers, and what more than that can only be a slip: the work would never end.
_MOST = {
    "steps": 10**6,
    "noise_samples": 10**6,
    "passes": 10**6,
    "average_last": 10**6,
    "lora_rank": 2**16,
    "rounds": 1000,
    "calibration_samples": 10**8,
    "compensation_samples": 10**8,
    "batch_size": 10**6,
    "multiple_of": 2**20,
    "tensor_parallel": 2**16,
}
MOST_TOKENS = 2**28  # of calibration windows: 2 GiB of ids
_MOST_OF_GROUP = 1024  # m of n:m
ENGINES_OF_UNIFORM_LAYERS = ("vllm", "llama.cpp")


def validate(config: MoreauPrunerConfig) -> None:
    """Checks every field and how they go together.

    Raises:
        ConfigError: names the field, its value, and what is allowed.
    """
    try:
        CRITERIA.check(config.criterion)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name, choices in CHOICES.items():
        if (value := getattr(config, name)) not in choices:
            known = [str(choice) for choice in choices if choice is not None]
            raise ConfigError(
                f"{name}: unknown value {value!r}.{suggestion(str(value), known)} Known: {', '.join(known)}"
            )
    _validate_layers_and_targets(config)
    _validate_ratios(config)
    _validate_shapes(config)
    _validate_masks(config)
    _validate_protection(config)
    for name in (*_POSITIVE, *_WEIGHTS):
        _check_number(name, getattr(config, name), above=0.0, inclusive=name in ("sigma", "eta", *_WEIGHTS))
    if config.sample_share is not None and not 0 < _number(config.sample_share) <= 1:
        raise ConfigError(f"sample_share: {config.sample_share!r} is not a share in (0, 1]; a tenth is 0.1")
    for name, most in _MOST.items():
        check_whole(name, getattr(config, name), least=1, most=most)
    check_whole("sequence_length", config.sequence_length, least=2, most=2**24)
    check_whole("seed", config.seed, least=0, most=2**63 - 1)
    for name in ("calibration_samples", "compensation_samples"):
        if (tokens := getattr(config, name) * config.sequence_length) > MOST_TOKENS:
            raise ConfigError(
                f"{name}: {getattr(config, name):,} windows of {config.sequence_length:,} are {tokens:,} tokens;"
                f" {MOST_TOKENS:,} at most"
            )
    for name in ("released", "uniform", "fold_norms", "update", "permute", "feed_forward", "intercept"):
        if not isinstance(value := getattr(config, name), bool):
            raise ConfigError(f"{name}: {value!r} is not true or false")
    _validate_compensation(config)
    if config.decay is not None:
        _check_share("decay", config.decay)
    if config.eta_quantile is not None:
        _check_share("eta_quantile", config.eta_quantile)
        if config.eta is not None:
            raise ConfigError("eta and eta_quantile are both given; give one of them")
        if config.released:
            raise ConfigError("released=True has an absolute threshold only; give eta instead of eta_quantile")
    _validate_steps(config)
    if config.released and (config.noise_samples not in (None, 1) or config.channel_group != "row"):
        raise ConfigError("released=True draws once per step and thresholds rows; leave noise_samples, channel_group")
    if config.released and config.reduction != "gradient":
        raise ConfigError("released=True takes the gradient of the mean loss; leave reduction out")
    if config.released and config.criterion not in ("moreau", "moreau-gs"):
        raise ConfigError(f"released=True reproduces moreau and moreau-gs only, not {config.criterion}")


def _validate_steps(config: MoreauPrunerConfig) -> None:
    """ρ and γ are absolute, or ρ is relative and γ a share of it."""
    if config.step_ratio is not None and not 0 < _number(config.step_ratio) <= 1:
        raise ConfigError(f"step_ratio: {config.step_ratio!r} is not a share in (0, 1]; a fifth is 0.2")
    relative = [name for name in ("relative_rho", "step_ratio") if getattr(config, name) is not None]
    absolute = [name for name in ("rho", "step_size", "eta") if getattr(config, name) is not None]
    if absolute and relative:
        raise ConfigError(
            f"{relative[0]}: is relative, and {absolute[0]} absolute; give relative_rho, step_ratio and eta_quantile,"
            " or rho, step_size and eta"
        )
    if relative and config.released:
        raise ConfigError(f"released=True has absolute steps only; give rho, step_size instead of {relative[0]}")


def _validate_ratios(config: MoreauPrunerConfig) -> None:
    sizes = {
        "pruning_ratio": "share of the parameters",
        "unit_ratio": "share of the units",
        "target_parameters": "parameters left",
        "target_bytes": "bytes left",
    }
    given = [f"{name} ({words})" for name, words in sizes.items() if getattr(config, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are both given; give one")
    if config.pruning_ratio is not None:
        _check_share("pruning_ratio", config.pruning_ratio)
    if isinstance(config.unit_ratio, tuple):
        if len(config.unit_ratio) != len(config.targets):
            targets = ", ".join(config.targets)
            raise ConfigError(f"unit_ratio: {config.unit_ratio} is not one number, or one for each target ({targets})")
        for share in config.unit_ratio:
            _check_share("unit_ratio", share)
    elif config.unit_ratio is not None:
        _check_share("unit_ratio", config.unit_ratio)


def _validate_layers_and_targets(config: MoreauPrunerConfig) -> None:
    for name in ("attention_layers", "mlp_layers", "whole_layers"):
        layers = getattr(config, name)
        whole = isinstance(layers, tuple) and len(layers) == 2 and all(type(end) is int for end in layers)
        if layers is not None and not (whole and 0 <= layers[0] < layers[1]):
            raise ConfigError(f"{name}: {layers!r} is not (start, end) with 0 <= start < end (end excluded)")
    names = config.targets if isinstance(config.targets, tuple) else ()
    if not names or len({str(name) for name in names}) != len(names):
        raise ConfigError(f"targets: {config.targets!r} is not a list of distinct names of {', '.join(TARGETS)}")
    for target in config.targets:
        if target not in TARGETS:
            raise ConfigError(f"targets: unknown '{target}'.{suggestion(target, TARGETS)} Known: {', '.join(TARGETS)}")


def _validate_masks(config: MoreauPrunerConfig) -> None:
    """What concerns masks is refused without one, and what concerns units with one."""
    if config.permute and config.pattern in ("units", "unstructured"):
        raise ConfigError(f"permute: concerns n:m masks, not '{config.pattern}'; give a pattern as well: 2:4, 4:8, …")
    if config.pattern == "units":
        given = [name for name in ("sparsity", "refine", "mask_group") if getattr(config, name) is not None]
        if given := [*given, *(["update"] if config.update else [])]:
            raise ConfigError(f"{given[0]}: concerns masks; give a pattern as well: unstructured, 2:4, …")
        return
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", str(config.pattern))
    if config.pattern != "unstructured" and not (found and 0 < int(found[1]) < int(found[2]) <= _MOST_OF_GROUP):
        raise ConfigError(
            f"pattern: '{config.pattern!s:.40}' is not units, unstructured, or n:m with 0 < n < m ≤ {_MOST_OF_GROUP},"
            " e.g. 2:4"
        )
    sizes = ("pruning_ratio", "unit_ratio", "target_parameters", "target_bytes")
    if given := [name for name in sizes if getattr(config, name) is not None]:
        raise ConfigError(f"{given[0]}: concerns units; a mask of pattern '{config.pattern}' takes sparsity instead")
    if config.mask_group is not None and (found or config.budget == "global"):
        compares = f"'{config.pattern}' compares every {found[2]} inputs" if found else "budget 'global' compares all"
        raise ConfigError(f"mask_group: {compares}; leave '{config.mask_group}' out")
    if config.multiple_of != 1:
        raise ConfigError("multiple_of: concerns units; a mask leaves every shape as it is")
    if config.sparsity is not None:
        if found:
            raise ConfigError(f"sparsity: '{config.pattern}' says itself how many weights stay; leave sparsity out")
        _check_share("sparsity", config.sparsity)
    if not set(config.targets) <= {"attention", "mlp"}:
        raise ConfigError("targets: masks are of attention and mlp; leave hidden and layers out")
    if config.criterion == "sparsegpt" and config.mask_group == "row" and not config.refine:
        raise ConfigError("mask_group: sparsegpt compares within blocks of 128 columns; leave it out")
    if config.budget != "uniform" and found:
        raise ConfigError(f"budget: '{config.pattern}' gives every matrix the same share; leave '{config.budget}' out")
    if config.budget not in BUDGETS_OF_MASKS:
        raise ConfigError(f"budget: '{config.budget}' spreads units; a mask takes {', '.join(BUDGETS_OF_MASKS)}")
    if config.protect:
        raise ConfigError("protect: concerns MLP channels, which a mask does not remove; leave it out")
    if config.protect_outliers is not None:
        raise ConfigError("protect_outliers: concerns heads and channels, which a mask does not remove; leave it out")
    if config.criterion == "sparsegpt" and config.budget == "global" and not config.refine:
        raise ConfigError("budget: sparsegpt decides within each matrix; use uniform or owl")


def _validate_protection(config: MoreauPrunerConfig) -> None:
    _check_share("protect", config.protect)
    _check_number("protect_outliers", config.protect_outliers, above=1.0, inclusive=True)
    if config.protect_outliers is not None:
        if "hidden" in config.targets:
            raise ConfigError(
                "protect_outliers: is of heads and MLP channels, not of hidden ones; leave hidden out of the targets"
            )
        if not {"attention", "mlp"} & set(config.targets):
            raise ConfigError("protect_outliers: concerns heads and MLP channels, which are no targets; leave it out")


def _validate_compensation(config: MoreauPrunerConfig) -> None:
    try:
        COMPENSATIONS.check(config.compensation)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.compensation != "none" and config.masks:
        raise ConfigError(f"compensation: '{config.compensation}' is for units; a mask takes update instead")
    if config.rounds > 1 and config.budget in ("cosine", "owl", "search"):
        raise ConfigError(
            f"rounds: budget '{config.budget}' measures whole layers, not what a round left; take uniform, global or"
            " zscore"
        )
    if config.intercept and config.compensation == "none":
        raise ConfigError("intercept: concerns a compensation; give one as well: refit, scale")
    if config.rounds > 1 and (config.masks or not set(config.targets) <= {"attention", "mlp"}):
        raise ConfigError("rounds: only heads and MLP channels go in rounds; leave other targets and patterns out")


def _validate_shapes(config: MoreauPrunerConfig) -> None:
    one_shape = config.uniform or config.engine in ENGINES_OF_UNIFORM_LAYERS
    reason = "uniform=True" if config.uniform else f"engine '{config.engine}'"
    if one_shape and config.budget != "uniform":
        raise ConfigError(
            f"budget '{config.budget}' makes layers of different shape, {reason} wants one; leave one out"
        )
    if config.engine in ENGINES_OF_UNIFORM_LAYERS and config.export == "custom":
        raise ConfigError(f"export 'custom' is an own model type, which {config.engine} does not read; leave one out")
    if config.engine == "llama.cpp" and config.tensor_parallel != 1:
        raise ConfigError("tensor_parallel: llama.cpp splits a model between layers or rows of any shape; leave it out")
    if config.fold_norms and "hidden" not in config.targets:
        raise ConfigError("fold_norms concerns hidden channels, which are not among the targets; leave it out")
    if config.layer_criterion != "sum" and "layers" not in config.targets:
        raise ConfigError("layer_criterion concerns whole layers, which are not among the targets; leave it out")
    if config.channel_group == "unit" and "hidden" in config.targets and len(config.targets) > 1:
        raise ConfigError("channel_group 'unit': hidden channels share weights with other units; use 'row'")


def _check_share(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ConfigError(f"{name}: {value!r} is not a share in [0, 1); 20 % is 0.2")


def _check_number(name: str, value: Any, *, above: float, inclusive: bool) -> None:
    if value is None:
        return
    number = type(value) in (int, float) and math.isfinite(value)
    if not number or value < above or (value == above and not inclusive):
        raise ConfigError(f"{name}: {value!r} is not a number {'≥' if inclusive else '>'} {above:g}")


def _number(value: Any) -> float:
    return value if type(value) in (int, float) else math.nan


def check_whole(name: str, value: Any, *, least: int, most: int) -> None:
    """Raises ConfigError where a value that is given is no whole number from `least` to `most`."""
    if value is not None and (type(value) is not int or value < least):
        raise ConfigError(f"{name}: {value!r:.40} is not a whole number ≥ {least}")
    if value is not None and value > most:
        raise ConfigError(f"{name}: {value!r:.40} is more than can be meant; {most:,} at most")
