"""`MoreauPrunerConfig`: its fields, what they resolve to, and its file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from ..errors import ConfigError
from ..registry import CRITERIA, METHODS, suggestion
from .file import ConfigFile
from .flat import unflattened
from .methods import described, made, mask_of
from .presets import PRESETS, measured_settings
from .quantities import parse_bytes, parse_parameters
from .settings import Share, decided_otherwise, setting, settings, settings_of
from .validation import RUNTIMES_OF_UNIFORM_LAYERS, SIZES, UNITS, resolved_layers, validate

logger = logging.getLogger(__name__)

Layers = Annotated[tuple[int, int], Field(strict=False)]
BatchSize = Annotated[int, Field(ge=1, le=10**6)]
_size: Any = partial(setting, default=None, affects="plan", compared=False)
_layers: Any = partial(setting, default=None, affects="scope", metavar="START:END")


@settings
class MoreauPrunerConfig(ConfigFile):
    """How a model is pruned. Fields that depend on the model stay `None` until `resolve`.

    A criterion, a budget and a compensation are given by name, where their defaults will do, or as an object with
    settings of its own: `criterion=MoreauGS(sigma=0.2)`. Such a setting may also stand beside the name, as in
    `criterion="moreau-gs", sigma=0.2`. `optimum-moreau criteria NAME` lists them.

    Raises:
        ConfigError: a value is out of its range or contradicts another.
    """

    criterion: Any = setting("how weights are scored", default="moreau-gs", metavar="NAME", compared=False)
    pruning_ratio: Share | None = _size(
        "share of the model's parameters to remove (0.2)", flag="ratio", metavar="SHARE"
    )
    unit_ratio: float | Annotated[tuple[float, ...], Field(strict=False)] | None = _size(
        "instead: share of the units in scope; one, or one per target", metavar="SHARE[,SHARE]"
    )
    target_parameters: Any = _size("instead: the most parameters left, e.g. 5.5B, 800M", metavar="SIZE")
    target_bytes: Any = _size("instead: the most bytes left in the model's dtype, e.g. 12GiB, 12GB", metavar="SIZE")
    targets: Annotated[tuple[str, ...], Field(strict=False)] = setting(
        "what may be cut: attention, mlp, hidden, layers", default=UNITS, affects="scope", metavar="NAMES"
    )
    attention_layers: Layers | None = _layers("layers whose attention is in scope, end excluded")
    mlp_layers: Layers | None = _layers("layers whose MLP is in scope")
    whole_layers: Layers | None = _layers("layers that may go whole (default of all three: 4:30 of 32, scaled)")
    budget: Any = setting("how the size is spread over layers", default="uniform", affects="plan", metavar="NAME")
    compensation: Any = setting(
        "how what stays is adjusted", default="none", affects="apply", metavar="NAME", compared=False
    )
    mask: Any = setting(
        "single weights become zero instead: unstructured, 2:4, 4:8, …", default=None, metavar="PATTERN", compared=False
    )
    rounds: Annotated[int, Field(ge=1, le=1000)] = setting(
        "prune in N rounds, each scored as the one before left the model", default=1, metavar="N", compared=False
    )
    schedule: Literal["cubic", "linear"] = setting(
        "how fast the rounds reach the size", default="cubic", compared=False, rare=True
    )
    calibration_samples: int = setting(
        "windows of calibration text", default=10, flag="samples", metavar="N", ge=1, le=10**8
    )
    sequence_length: int = setting("tokens per window", default=128, flag="seq-len", metavar="N", ge=2, le=2**24)
    batch_size: BatchSize | None = setting(
        "windows per forward pass (all, at most 10)", default=None, affects="work", metavar="N", rare=True
    )
    seed: int = setting(
        "of windows, noise and random scores", default=0, metavar="N", ge=0, le=2**63 - 1, compared=False
    )
    runtime: Literal["transformers", "vllm", "llama.cpp"] = setting(
        "what must load the result", default="transformers", affects="plan", was="engine", compared=False
    )
    tensor_parallel: Annotated[int, Field(ge=1, le=2**16)] = setting(
        "devices over which that runtime splits every layer", default=1, affects="plan", metavar="N", compared=False
    )
    multiple_of: int = setting(
        "keep channels as a multiple of N", default=1, affects="plan", metavar="N", ge=1, le=2**20, rare=True
    )
    uniform: bool = setting(
        "every layer in scope keeps the same number of heads and channels", default=False, affects="plan"
    )
    fold_norms: bool = setting(
        "hidden channels: keep the norms' averages over the original width", default=False, affects="plan", rare=True
    )
    export: Literal["auto", "stock", "custom"] = setting(
        "class of the result", default="auto", affects="plan", compared=False
    )
    offload: Literal["cpu", "disk"] | None = setting(
        "where δ of the Moreau envelope is kept (the device that scores)", default=None, affects="work", rare=True
    )

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        for name, parse in (("target_parameters", parse_parameters), ("target_bytes", parse_bytes)):
            if (value := getattr(self, name)) is not None:
                put(name, parse(value))
        for name, registry in METHODS.items():
            put(name, made(registry, name, getattr(self, name)))
        put("mask", mask_of(self.mask))
        validate(self)

    @staticmethod
    def prepared(values: dict[str, Any]) -> dict[str, Any]:
        """Lets a method's setting be given beside its name: `criterion="moreau", steps=5`."""
        return unflattened(values)

    @classmethod
    def paper(cls, criterion: Any = "moreau-gs", **changes: Any) -> MoreauPrunerConfig:
        """The paper's protocol: 25 % of the units of layers 4..29 of 32, 10 × 128 tokens, its ρ, γ, σ, T and η.

        With η = 5e-6 the group threshold of `moreau-gs` is inert: γη lies far below any channel's norm.
        """
        return cls(**{"unit_ratio": 0.25, "criterion": criterion, **changes})

    @classmethod
    def best(cls, **changes: Any) -> MoreauPrunerConfig:
        """What keeps quality best without tuning, as measured (results/yardstick.md): the default of pruning.

        `surgeon` of 256 windows and a `refit`; MLP channels give alone, of the layers in scope alike, until two thirds
        of them go. Criteria of gradients by the importances of as many windows or, where they take several passes over
        each, passes; what the changes rule out is left out (config/presets.py).
        """
        return cls(**measured_settings("best", changes))

    @classmethod
    def fast(cls, **changes: Any) -> MoreauPrunerConfig:
        """`wanda` of 128 windows, the same units as `best` takes of, and nothing adjusted: one pass, little memory."""
        return cls(**measured_settings("fast", changes))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MoreauPrunerConfig:
        """`best`, `fast`, `paper`, or `plain`, the fields' own defaults, with changes; their size replaces its own.

        Raises:
            ConfigError: an unknown preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset: unknown value {name!r}.{suggestion(name, PRESETS)} Known: {', '.join(PRESETS)}")
        if name != "paper":
            return cls(**measured_settings(name, changes)) if name in ("best", "fast") else cls.from_dict(changes)
        sized = {"unit_ratio": None} if any(size in changes for size in SIZES) else {}
        return cls.paper(**{**sized, **changes})

    def resolve(self, model_config: Any) -> ResolvedConfig:
        """Fills in what depends on the criterion and on the model.

        Args:
            model_config: the model's `PretrainedConfig`; its number of layers and its widths are read.

        Returns:
            The config that says exactly what runs.

        Raises:
            ConfigError: a layer range lies outside the model, or the criterion cannot score a target.
        """
        criterion, depth = self.criterion, model_config.num_hidden_layers
        if "activations" in criterion.needs and "hidden" in self.targets and not self.by_influence_alone:
            raise ConfigError(
                f"targets: {criterion.name} scores what flows into heads and MLP channels, not hidden channels; leave"
                " hidden out, or take a criterion of weights or gradients"
            )
        if self.budget.name != "uniform" and not self.masks and not {*UNITS} & {*self.targets}:
            logger.warning("budget '%s' spreads heads and channels, which are no targets: ignored", self.budget.name)
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        values["criterion"] = criterion if self.by_influence_alone else criterion.resolved()
        if self.mask is not None:
            compared = not self.mask.structured and self.budget.name != "global"
            group = (self.mask.group or criterion.mask_group) if compared else None
            share = 0.5 if not self.mask.structured and self.mask.sparsity is None else self.mask.sparsity
            values["mask"] = dataclasses.replace(self.mask, group=group, sparsity=share)
        elif all(values[name] is None for name in SIZES):
            values["pruning_ratio"] = 0.2
        if self.compensation.fits and self.compensation.windows is None:
            values["compensation"] = self.compensation.resolved(_widest(model_config), self.sequence_length)
        values["batch_size"] = self.batch_size or min(self.calibration_samples, 10)
        return ResolvedConfig(**{**values, **resolved_layers(self, depth)})

    @property
    def masks(self) -> bool:
        """Whether single weights become zero, instead of whole units going."""
        return self.mask is not None

    @property
    def unit_ratios(self) -> dict[str, float]:
        """Of each target, the share of its units; where a share of units is given."""
        given = self.unit_ratio if isinstance(self.unit_ratio, tuple) else (self.unit_ratio or 0.0,) * len(self.targets)
        return dict(zip(self.targets, given, strict=True))

    @property
    def by_influence(self) -> bool:
        """Whether whole layers may go, by their block influence."""
        return "layers" in self.targets and self.criterion.layers == "block-influence"

    @property
    def by_influence_alone(self) -> bool:
        """Whether these go and nothing else, so that the criterion scores nothing."""
        return self.by_influence and len(self.targets) == 1

    @property
    def one_shape(self) -> bool:
        """Whether every layer keeps the same shape."""
        return self.uniform or self.runtime in RUNTIMES_OF_UNIFORM_LAYERS

    @property
    def decided_by(self) -> str:
        """The criterion's name, or that of the layer criterion where it decides alone."""
        return str(self.criterion.layers if self.by_influence_alone else self.criterion.name)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dictionary that JSON can hold; a method's settings lie in a dictionary of its own."""
        return {one.name: described(getattr(self, one.name)) for one in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MoreauPrunerConfig:
        """Makes a config from a dictionary, also a flat one of the first edition; refuses keys it does not know.

        Raises:
            ConfigError: an unknown key (with "did you mean"), or a value that is not valid.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__}: {values!r:.40} is no dictionary of fields")
        return cls(**{str(name): value for name, value in values.items()})

    def changed(self, **changes: Any) -> Self:
        """Returns the config with other settings, flat or where they belong; a size stands for the one there was.

        Another criterion, given by its name, keeps those settings of the one before that are its own too.
        """
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in settings_of(self)}
        if any(size in changes for size in SIZES):
            values |= dict.fromkeys(SIZES)
        criterion = changes.get("criterion")
        if isinstance(criterion, str) and criterion in CRITERIA and criterion != self.criterion.name:
            kind = CRITERIA.get(criterion)
            known = {one.name for one in settings_of(kind)}
            own = {one.name: (getattr(self.criterion, one.name), one.default) for one in settings_of(self.criterion)}
            kept = {name: value for name, (value, default) in own.items() if name in known and value != default}
            changes = {**changes, "criterion": {"name": criterion, **kept}}
        return type(self)(**{**values, **changes})

    def replanned(self, changes: Mapping[str, Any], scores: str = "these scores") -> MoreauPrunerConfig:
        """The config of a new plan from the same scores.

        Args:
            changes: settings of the new plan, flat or where they belong.
            scores: their name, for messages.

        Raises:
            ConfigError: a change would have changed the scores, or these come from rounds.
        """
        if self.rounds > 1:
            raise ConfigError(f"{scores}: come from rounds that led to one size; score again for another")
        known = {name: described(getattr(self, name)) for name in (*METHODS, "mask")}
        own, merged = {one.name: one for one in settings_of(self)}, unflattened({**known, **changes})
        changes = {name: value for name, value in merged.items() if name not in known or value != known[name]}
        for name, value in changes.items():
            if own[name].affects not in ("scope", "plan", "apply") and value != described(getattr(self, name)):
                raise ConfigError(f"{name} decided the scores; leave it out, or score again without --from-scores")
        values = self.to_dict()
        if any(size in changes for size in SIZES):
            values |= dict.fromkeys(SIZES)
        if "runtime" in changes:  # what the last one made of the scope does not hold for another
            values |= {"attention_layers": None, "mlp_layers": None, "uniform": False, "export": "auto"}
        one_shape = changes.get("uniform") or changes.get("runtime", "transformers") != "transformers"
        if one_shape and self.budget.name != "uniform":  # nobody asked for the scores' budget
            values["budget"] = "uniform"
        made = type(self).from_dict({**values, **changes})
        for name in decided_otherwise(self, made, "elements", "scores"):
            raise ConfigError(f"{name} decided the scores; leave it out, or score again without --from-scores")
        return made


@settings
class ResolvedConfig(MoreauPrunerConfig):
    """What exactly runs on one model: every layer range is given, and every setting of the criterion and the mask."""

    batch_size: BatchSize = setting("windows per forward pass", default=10, affects="work")
    attention_layers: Layers = setting("layers whose attention is in scope", default=(0, 1), affects="scope")
    mlp_layers: Layers = setting("layers whose MLP is in scope", default=(0, 1), affects="scope")
    whole_layers: Layers = setting("layers that may go whole", default=(0, 1), affects="scope")


def _widest(model_config: Any) -> int:
    """Columns of the widest o_proj or down_proj that a model's config tells of."""
    widest = 0
    for layer in getattr(model_config, "per_layer_config", None) or [model_config]:  # an own type's layers differ
        heads = layer.num_attention_heads
        width = getattr(layer, "head_dim", None) or model_config.hidden_size // max(heads, 1)
        widest = max(widest, heads * width, layer.intermediate_size)
    return widest


def config_meant(config: Any, settings: Mapping[str, Any]) -> MoreauPrunerConfig:
    """The config that is meant: one, a criterion's name, fields of one, or `None`; with settings over it.

    Raises:
        ConfigError: it is of another type, or a field of it is not valid.
    """
    if isinstance(config, MoreauPrunerConfig):
        return config.changed(**settings) if settings else config
    if isinstance(config, str):
        return MoreauPrunerConfig.best(**{"criterion": config, **settings})
    if config is None or isinstance(config, Mapping):
        given = {str(field): value for field, value in (config or {}).items()}
        return MoreauPrunerConfig.best(**{**given, **settings})
    raise ConfigError(
        f"MoreauPruner: {config!r:.40} is no config; pass a MoreauPrunerConfig, a criterion's name, or a dictionary of"
        " its fields"
    )
