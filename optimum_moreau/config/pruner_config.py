"""`MoreauPrunerConfig`: its fields, what they resolve to, and its file."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..files import read_json, write_text
from ..files.temporary import reason
from ..registry import COMPENSATIONS, CRITERIA, suggestion
from .presets import PAPER_ETA, PAPER_STEPS, PRESETS, best_settings, paper_settings
from .quantities import parse_bytes, parse_parameters
from .validation import ENGINES_OF_UNIFORM_LAYERS, UNITS, validate

logger = logging.getLogger(__name__)

CONFIG_NAME = "moreau_pruner_config.json"
# Settings that only some criteria read; `None` until `resolve` takes the criterion's default.
CRITERION_FIELDS = (
    "rho", "step_size", "relative_rho", "step_ratio", "eta", "eta_quantile", "sigma", "steps", "noise_samples",
    "passes", "average_last",
    "alpha", "exponent", "norm_order", "input_weight", "output_weight", "sample_share", "lora_rank", "learning_rate",
    "decay", "damping",
)  # fmt: skip
_LAYER_RANGES = ("attention_layers", "mlp_layers", "whole_layers")
# How much is removed, in one of these.
SIZES = ("pruning_ratio", "unit_ratio", "target_parameters", "target_bytes")
RELEASED_AVERAGE_LAST = 5


@dataclass(frozen=True)
class MoreauPrunerConfig:
    """How a model is pruned. Fields that depend on the model or the criterion stay `None` until `resolve`.

    Attributes:
        criterion: how weights are scored, a name of the registry (`optimum-moreau criteria` lists them).
        pruning_ratio: share of the model's parameters to remove, in [0, 1). 0.2 if no other target size is given.
        unit_ratio: instead, the share of the units in scope to remove; one number, or one for each of `targets`.
        target_parameters: instead, the most parameters that may be left: `5.5B`, `800M`, or a whole number.
        target_bytes: instead, the most bytes that the saved weights may take in the model's dtype: `12GiB`, `12GB`.
        attention_layers: (start, end) of the layers whose attention is in scope, end excluded.
        mlp_layers: the same for the MLP.
        whole_layers: the same for layers removed whole. Default for all three: the paper's 4..29 of 32, scaled to the
            model's depth; where the engine reads uniform layers only, and for masks, attention and MLP of all layers.
        targets: what may be cut: `attention` (heads or KV groups), `mlp` (channels), `hidden` (channels of the residual
            stream), `layers` (whole ones).
        layer_criterion: what a layer is worth: `sum` of its units' scores, or `block-influence`, 1 − mean cosine
            similarity between its input and output.
        fold_norms: hidden channels only: keep the norms' averages over the original width, by factors folded into their
            weights and ε; otherwise they average over the channels kept.
        budget: how heads, channels or zeros are spread over layers. `uniform`: each layer gives the same share;
            `global`: one ranking over all layers; `owl`: by each layer's share of outliers. Of units alone: `cosine`,
            by how like a layer's output is to its input; `zscore`: one ranking of scores standardised in each block;
            `search`: by the calibration loss without some units of each block (budgets/spread.py has the formulas).
        protect: share of each MLP's channels, the lowest-scored, that stay; the next-lowest go instead.
        protect_outliers: M: an MLP channel or head never goes, in a layer that stays, if what it hands to down_proj or
            o_proj is in the root mean square more than M times the mean of its block; 5 is OWL's. Default: off.
        aggregation: how the coupled matrices of a unit combine (paper, Eq. 5): `sum`, `mean`, `max`, `prod`.
        rho: ρ of the Moreau envelope (paper, Eq. 6), absolute. Where ρ, γ or, for groups, η is given, the others and σ
            are the paper's by default.
        step_size: γ of Algorithm 1, absolute.
        relative_rho: instead of `rho`: ρ of each matrix is this times ‖W‖/‖g‖, g its gradient at the first step, so
            that δ, where small, comes to about this share of W whatever the scale of the loss (envelope/moreau.py).
        step_ratio: γ/ρ, with `relative_rho`, in (0, 1].
        eta: η, absolute group-sparsity threshold of Algorithm 1; the group threshold is γη.
        eta_quantile: instead of `eta`: the threshold is this quantile of the group norms of the step.
        sigma: σ of the Gaussian smoothing.
        noise: `relative`: noise of σ·|w| per element (paper, appendix E.2); `absolute`: σ (Theorem 1).
        steps: T of Algorithm 1, and of `lora`.
        noise_samples: m, noise draws per step.
        passes: noisy passes of `smoothgrad`.
        average_last: how many of the last iterates the score is the mean of.
        alpha: α of `gblm`: how much the gradient weighs beside the activations.
        exponent: a of `ria`, `stochria` and `symwanda-relative`: the power of the inputs' norm.
        norm_order: p of `symwanda-relative`.
        input_weight: how much the inputs weigh in `symwanda`.
        output_weight: how much the outputs weigh in it.
        sample_share: β of `stochria`: the share of the smaller side that row and column sums are over.
        lora_rank: r of `lora`'s adapters.
        learning_rate: of their training.
        decay: λ of `lora`: how much of the score before stays at each step.
        damping: of `sparsegpt`: share of the Hessian's mean diagonal that is added to its diagonal.
        pattern: what goes: whole `units`, or single weights: anywhere (`unstructured`), or all but n of every m
            consecutive inputs (`2:4`, `4:8`, …). The model's shapes stay then, and its zeros are counted, not removed.
        sparsity: share of the weights in scope that become zero, in an unstructured mask; default 0.5.
        mask_group: weights that are compared in an unstructured mask: each output `row`, or the whole matrix (`layer`);
            default: the criterion's, which is the literature's.
        refine: step that improves a mask without training: `dsnot` or `r2-dsnot` (masks/refine.py).
        update: adjust the weights that stay to make up for those that go (masks/obs.py); `sparsegpt` always does.
        permute: put channels of the MLP, and of the values inside each head, in an order for which an n:m mask keeps
            more score (masks/permute.py); the network's function is the same in every order.
        feed_forward: what is masked reaches the layers behind before these are scored, where scoring is by layer.
        channel_group: groups of the group threshold: `row` (output row of a matrix) or `unit` (the coupled unit).
        reduction: of gradients, what is averaged over the samples: the `gradient` (the paper: importances of the
            gradient of the mean loss), or the `importance` that each sample gives alone. It concerns `moreau`,
            `moreau-gs`, `smoothgrad`, `taylor`, `taylor-mixed` and `taylor-vector`; `taylor-second` and `gblm` average
            over samples anyway, and nothing changes for them, for `lora`, and for criteria without gradients.
        released: reproduce the published code's update instead of Algorithm 1 (criteria/released.py says how).
        calibration_samples: windows of calibration text.
        sequence_length: tokens per window.
        batch_size: windows per forward pass; does not change the scores. Default: all, at most 10.
        multiple_of: the channels kept, of an MLP or of the residual stream, are a multiple of this.
        uniform: every layer in scope keeps the same number of heads and of channels.
        engine: what must load the result: `transformers`, `vllm` or `llama.cpp` (planning/runtimes.py has their rules).
        tensor_parallel: number of devices over which that engine splits every layer.
        state_dtype: in which δ is kept: `float32` or `bfloat16`.
        offload: where δ is kept: `cpu`, `disk`, or by default the device that scores.
        compensation: how what stays of o_proj and down_proj is adjusted after the cut, whatever the targets: `none`,
            `refit`, `scale`, `bias` (compensation/steps.py).
        compensation_samples: windows of calibration text that this reads.
        ridge: λ of `refit`, as a share of the mean of diag XᵀX.
        intercept: fit a bias too, in o_proj and down_proj; an own type holds it where the model's class cannot.
        rounds: the size is reached in so many rounds; each scores the model as the one before left it, compensated.
        schedule: how much of the way round k of N is: `linear` k/N, `cubic` 1 − (1 − k/N)³.
        seed: of the windows, of the noise and of `random`.
        export: `stock` (a class of transformers), `custom` (own type, per-layer shapes) or `auto`.

    Raises:
        ConfigError: a value is out of its range or contradicts another.
    """

    criterion: str = "moreau-gs"
    pruning_ratio: float | None = None
    unit_ratio: float | tuple[float, ...] | None = None
    target_parameters: int | None = None
    target_bytes: int | None = None
    attention_layers: tuple[int, int] | None = None
    mlp_layers: tuple[int, int] | None = None
    whole_layers: tuple[int, int] | None = None
    targets: tuple[str, ...] = UNITS
    layer_criterion: str = "sum"
    fold_norms: bool = False
    budget: str = "uniform"
    protect: float = 0.0
    protect_outliers: float | None = None
    aggregation: str = "sum"
    rho: float | None = None
    step_size: float | None = None
    relative_rho: float | None = None
    step_ratio: float | None = None
    eta: float | None = None
    eta_quantile: float | None = None
    sigma: float | None = None
    noise: str = "relative"
    steps: int | None = None
    noise_samples: int | None = None
    passes: int | None = None
    average_last: int | None = None
    alpha: float | None = None
    exponent: float | None = None
    norm_order: float | None = None
    input_weight: float | None = None
    output_weight: float | None = None
    sample_share: float | None = None
    lora_rank: int | None = None
    learning_rate: float | None = None
    decay: float | None = None
    damping: float | None = None
    pattern: str = "units"
    sparsity: float | None = None
    mask_group: str | None = None
    refine: str | None = None
    update: bool = False
    permute: bool = False
    feed_forward: bool = True
    channel_group: str = "row"
    reduction: str = "gradient"
    released: bool = False
    calibration_samples: int = 10
    sequence_length: int = 128
    batch_size: int | None = None
    multiple_of: int = 1
    uniform: bool = False
    engine: str = "transformers"
    tensor_parallel: int = 1
    state_dtype: str = "float32"
    offload: str | None = None
    compensation: str = "none"
    compensation_samples: int = 128
    ridge: float = 1e-2
    intercept: bool = False
    rounds: int = 1
    schedule: str = "cubic"
    seed: int = 0
    export: str = "auto"

    def __post_init__(self) -> None:
        for name in (*_LAYER_RANGES, "unit_ratio", "targets"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        for name, parse in (("target_parameters", parse_parameters), ("target_bytes", parse_bytes)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, parse(value))
        validate(self)

    @classmethod
    def paper(cls, criterion: str = "moreau-gs", **changes: Any) -> MoreauPrunerConfig:
        """The paper's protocol: 25 % of the units of layers 4..29 of 32, 10 × 128 tokens, its ρ, γ, σ, T and η.

        With η = 5e-6 the group threshold of `moreau-gs` is inert: γη lies far below any channel's norm.
        """
        return cls(**{**paper_settings(criterion, changes), **changes})

    @classmethod
    def best(cls, **changes: Any) -> MoreauPrunerConfig:
        """What keeps quality best without tuning, as measured (docs/results.md, "Quality"): the default of pruning.

        `wanda` of 400 windows, a `search` over layers, and a `refit`; other criteria of gradients by the importances of
        as many windows or, where they take several passes over each, passes; what the changes rule out is left out
        (config/presets.py).
        """
        return cls.from_dict({**best_settings(changes), **changes})

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MoreauPrunerConfig:
        """`best`, `paper`, or `plain`, the fields' own defaults, with changes; their size replaces the preset's.

        Raises:
            ConfigError: an unknown preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset: unknown value {name!r}.{suggestion(name, PRESETS)} Known: {', '.join(PRESETS)}")
        if name != "paper":
            return cls.best(**changes) if name == "best" else cls.from_dict(changes)
        sized = {"unit_ratio": None} if any(size in changes for size in SIZES) else {}
        return cls.paper(**{**sized, **changes})

    def resolve(self, model_config: Any) -> MoreauPrunerConfig:
        """Fills in what depends on the criterion and on the model.

        Args:
            model_config: the model's `PretrainedConfig`; only its number of layers is read.

        Returns:
            The config that says exactly what runs.

        Raises:
            ConfigError: a layer range lies outside the model, or the criterion cannot score a target.
        """
        criterion = CRITERIA.get(self.criterion)
        if "activations" in criterion.needs and "hidden" in self.targets and not self.by_influence_alone:
            raise ConfigError(
                f"targets: {self.criterion} scores what flows into heads and MLP channels, not hidden channels; leave"
                " hidden out, or take a criterion of weights or gradients"
            )
        defaults = dict(criterion.defaults)
        if self.criterion in PAPER_STEPS and self.absolute:
            defaults |= {"relative_rho": None, "step_ratio": None, **PAPER_STEPS[self.criterion]}
        if self.eta is not None:
            defaults["eta_quantile"] = None
        elif self.released and "eta" in defaults:  # the published code has an absolute η only
            defaults |= {"eta": PAPER_ETA, "eta_quantile": None}
        if self.released:
            defaults["average_last"] = RELEASED_AVERAGE_LAST

        if self.update:
            defaults.setdefault("damping", 0.01)
        if self.by_influence_alone:
            defaults = {}
        values: dict[str, Any] = {}
        if self.per_sample and "gradients" not in criterion.needs:
            logger.warning("%s does not use reduction: ignored", self.criterion)
            values["reduction"] = "gradient"
        for name in CRITERION_FIELDS:
            given = getattr(self, name)
            if name not in defaults and given is not None:
                logger.warning("%s does not use %s: ignored", self.criterion, name)
            values[name] = defaults.get(name) if given is None or name not in defaults else given
        if self.budget != "uniform" and not self.masks and not {*UNITS} & {*self.targets}:
            logger.warning("budget '%s' spreads heads and channels, which are no targets: ignored", self.budget)
        if self.ridge != type(self).ridge and not COMPENSATIONS.get(self.compensation).ridged:
            logger.warning("compensation '%s' does not use ridge: ignored", self.compensation)
        if self.masks:
            compared = self.pattern == "unstructured" and self.budget != "global"
            values["mask_group"] = (self.mask_group or criterion.mask_group) if compared else None
            values["sparsity"] = 0.5 if self.pattern == "unstructured" and self.sparsity is None else self.sparsity
        elif all(getattr(self, name) is None for name in SIZES):
            values["pruning_ratio"] = 0.2
        values["batch_size"] = self.batch_size or min(self.calibration_samples, 10)
        depth = model_config.num_hidden_layers
        everywhere = (0, depth) if self.masks else None
        values |= {name: _resolve_layers(name, getattr(self, name) or everywhere, depth) for name in _LAYER_RANGES}
        if self.engine in ENGINES_OF_UNIFORM_LAYERS:
            values |= _for_uniform_engine(self, depth)
        return dataclasses.replace(self, **values)

    @property
    def masks(self) -> bool:
        """Whether single weights become zero, instead of whole units going."""
        return self.pattern != "units"

    @property
    def fits_biases(self) -> bool:
        """Whether the compensation fits biases."""
        return self.intercept or COMPENSATIONS.get(self.compensation).needs_bias

    @property
    def per_sample(self) -> bool:
        """Whether each sample's importance is averaged, and not its gradient."""
        return self.reduction == "importance"

    @property
    def absolute(self) -> bool:
        """Whether a setting is given, ρ, γ or η, that has a meaning at one scale of the loss only."""
        eta = self.eta if self.criterion == "moreau-gs" else None
        return self.released or any(value is not None for value in (self.rho, self.step_size, eta))

    @property
    def by_influence_alone(self) -> bool:
        """Whether whole layers go, by their block influence, and nothing else, so that the criterion scores nothing."""
        return self.targets == ("layers",) and self.layer_criterion == "block-influence"

    @property
    def decided_by(self) -> str:
        """The criterion's name, or that of the layer criterion where it decides alone."""
        return self.layer_criterion if self.by_influence_alone else self.criterion

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dictionary that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MoreauPrunerConfig:
        """Makes a config from a dictionary; refuses keys it does not know.

        Raises:
            ConfigError: an unknown key (with "did you mean"), or a value that is not valid.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__}: {values!r:.40} is no dictionary of fields")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"{cls.__name__}: unknown field '{key}'.{suggestion(key, known)}")
        return cls(**values)

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Writes `moreau_pruner_config.json` into a folder (made if missing); returns the file.

        Raises:
            CheckpointError: it cannot be written.
        """
        folder = Path(save_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be made ({reason(error)})") from error
        write_text(folder / CONFIG_NAME, self._to_json())
        return folder / CONFIG_NAME

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> MoreauPrunerConfig:
        """Reads `moreau_pruner_config.json` from a local folder or a Hub repository.

        Raises:
            ConfigError: the file is missing, is not JSON, or holds an unknown key.
        """
        path = Path(name_or_path) / CONFIG_NAME
        if not Path(name_or_path).is_dir():
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

            try:
                path = Path(hf_hub_download(str(name_or_path), CONFIG_NAME, revision=revision, token=token))
            except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
                raise ConfigError(f"{name_or_path}: no folder here, and no {CONFIG_NAME} on the Hub") from error
        if not path.is_file():
            raise ConfigError(f"{name_or_path}: holds no {CONFIG_NAME}")
        return cls.from_dict(read_json(path, "a pruning config", ConfigError))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload pruning config",
        create_pr: bool = False,
    ) -> str:
        """Uploads the config to a Hub repository (made if missing); returns the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=self._to_json().encode(),
            path_in_repo=CONFIG_NAME,
            repo_id=repo_id,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )
        return commit.commit_url

    def _to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


def _resolve_layers(name: str, layers: tuple[int, int] | None, depth: int) -> tuple[int, int]:
    if layers is None:  # the paper's 4..29 of 32, scaled; at least one layer
        start = min(round(4 * depth / 32), depth - 1)
        return start, max(round(30 * depth / 32), start + 1)
    if layers[1] > depth:
        raise ConfigError(f"{name}: {layers[0]}:{layers[1]} lies outside the model's layers 0:{depth}")
    return layers


def _for_uniform_engine(config: MoreauPrunerConfig, depth: int) -> dict[str, Any]:
    """All layers are in scope, of one shape, in a stock class."""
    for name in ("attention_layers", "mlp_layers"):
        layers = getattr(config, name)
        if layers not in (None, (0, depth)) and name.removesuffix("_layers") in config.targets:
            raise ConfigError(
                f"{name}: {config.engine} reads layers of one shape only; leave {layers[0]}:{layers[1]} out, or use"
                f" 0:{depth}"
            )
    return {"attention_layers": (0, depth), "mlp_layers": (0, depth), "uniform": True, "export": "stock"}
