"""The dry run: what pruning would give and take, units or single weights, from a model's config alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..compensation.biases import shape_to_count
from ..config import MoreauPrunerConfig, ResolvedConfig, config_meant
from ..config.quantities import words_for_bytes, words_for_parts
from ..data.sources import check_there
from ..data.windows import check_positions, reading_bytes
from ..loading import load_skeleton
from ..masks.scope import ZerosEstimate, estimate_zeros
from ..models.buffers import skeleton, skeleton_of
from ..models.placement import check_device
from ..models.units import ModelShape, model_shape
from ..planning import contributions, expected_plan, removed_parameters, whole_plan
from ..scoring.scores import needs_text
from ..surgery.export import check_loadable, check_reachable, decide_export, layer_shapes
from .compensation import CompensationEstimate, estimate_compensation
from .scoring import ScoringEstimate, estimate_scoring


class Estimate:
    """What pruning would give and take; printed, the lines of `--dry-run`. One of units, or one of a mask."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as `--dry-run --json` prints them; `words` are the lines of a step."""
        found = dict(vars(self))
        for step in ("scoring", "compensation"):
            if step in found:
                found[step] = {**vars(found[step]), "words": found[step].lines} if found[step] else {}
        return found | ({"sparsity": vars(found["sparsity"])} if "sparsity" in found else {})

    def __str__(self) -> str:
        return shown(self.to_dict())

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class UnitsEstimate(Estimate):
    """Of units that go; of each layer before and after heads, KV heads, head width and channels, `None` if it goes."""

    parameters_before: int
    parameters_after: int
    ratio_achieved: float
    dtype: str
    bytes_before: int
    bytes_after: int
    kv_bytes_per_token_before: int
    kv_bytes_per_token_after: int
    hidden_before: int
    hidden_after: int
    layers_before: list[dict[str, int]]
    layers_after: list[dict[str, int] | None]
    contributions: dict[str, int]
    adjustments: list[str]
    export: str
    budget: str
    calibration_windows: int
    scoring: ScoringEstimate
    compensation: CompensationEstimate | None


@dataclass(frozen=True, repr=False)
class MaskEstimate(Estimate):
    """Of single weights that become zero: shapes and bytes stay."""

    parameters: int
    bytes: int
    dtype: str
    sparsity: ZerosEstimate
    export: str
    scoring: ScoringEstimate


def estimate_pruning(
    model: PreTrainedModel | PretrainedConfig | str,
    config: MoreauPrunerConfig | str | Mapping[str, Any] | None = None,
    *,
    calibration: Any = None,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> Estimate:
    """Estimates sizes, memory and time of a run: reads and allocates no weights, scores nothing.

    Args:
        model: a model, its config, or the folder or Hub id of one, of which config.json is read.
        config: what to prune and how, as `MoreauPruner` takes it; default `MoreauPrunerConfig.best()`.
        calibration: the text that scoring would read, for what reading it takes; default the small one that ships.
        device: that would compute, even where it is not here; default cuda where there is one. `auto` is that too.
        dtype: that a model named by a string would be loaded in.
        revision: of that model on the Hub.
        trust_remote_code: run the code that lies beside its config.
        **settings: of the config, in its place or over it: `estimate_pruning(model, pruning_ratio=0.3)`.

    Raises:
        MoreauError: what could not be pruned so is refused as pruning would (errors.py).
    """
    if isinstance(model, str):
        model = load_skeleton(model, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    if isinstance(model, PretrainedConfig):
        weights: Any = model.dtype or torch.float32
        shell = skeleton(copy.deepcopy(model), weights)
    else:
        shell = model if model.device.type == "meta" else skeleton_of(model)
    given = config_meant(config, settings)
    resolved = given if isinstance(given, ResolvedConfig) else given.resolve(shell.config)
    text = 0
    if needs_text(resolved) or resolved.compensation.fits:
        check_positions(shell.config, resolved.sequence_length)
        check_there(calibration)
        text = reading_bytes(calibration)
    of_kind = _estimate_mask if resolved.masks else _estimate_units
    kind = check_device(None if device in (None, "auto") else str(device), present=False).type
    return of_kind(shell, model_shape(shell), resolved, kind, text)


def _estimate_units(
    skeleton: PreTrainedModel, shape: ModelShape, config: ResolvedConfig, device: str, text: int
) -> UnitsEstimate:
    counted = shape_to_count(skeleton, shape, config)
    check_reachable(skeleton.config, shape, counted, config)
    plan = expected_plan(counted, config)
    plan = replace(plan, contributions=contributions(plan, shape))
    export = decide_export(skeleton.config, shape, plan, config.export)
    left = counted.parameters - removed_parameters(plan, counted)
    before, after = layer_shapes(skeleton.config, plan)
    item = skeleton.dtype.itemsize
    cache_before, cache_after = (
        sum(2 * layer["kv_heads"] * layer["head_dim"] * item for layer in layers if layer) for layers in (before, after)
    )
    hidden: int = skeleton.config.hidden_size
    return UnitsEstimate(
        parameters_before=shape.parameters,
        parameters_after=left,
        ratio_achieved=1 - left / shape.parameters,
        dtype=str(skeleton.dtype).removeprefix("torch."),
        bytes_before=shape.bytes,
        bytes_after=round(left * shape.bytes / shape.parameters),
        kv_bytes_per_token_before=cache_before,
        kv_bytes_per_token_after=cache_after,
        hidden_before=hidden,
        hidden_after=len(plan.hidden.kept) if plan.hidden else hidden,
        layers_before=before,
        layers_after=after,
        contributions=dict(plan.contributions),
        adjustments=[*plan.adjustments, *export.words],
        export=export.model_type,
        budget=config.budget.name,
        calibration_windows=config.calibration_samples if needs_text(config) else 0,
        scoring=estimate_scoring(skeleton, shape, config, device, text),
        compensation=estimate_compensation(skeleton, shape, plan, config, device),
    )


def _estimate_mask(
    skeleton: PreTrainedModel, shape: ModelShape, config: ResolvedConfig, device: str, text: int
) -> MaskEstimate:
    whole, zeros = whole_plan(shape), estimate_zeros(skeleton, shape, config)
    export = decide_export(skeleton.config, shape, whole, config.export)
    check_loadable(skeleton.config, shape, whole, export)
    dtype, scoring = str(skeleton.dtype).removeprefix("torch."), estimate_scoring(skeleton, shape, config, device, text)
    return MaskEstimate(shape.parameters, shape.bytes, dtype, zeros, export.model_type, scoring)


def shown(values: Mapping[str, Any]) -> str:
    """The lines for a reader, of what `Estimate.to_dict` gave."""
    if "sparsity" in values:
        return _shown_mask(values)
    disk_before, disk_after, cache_before, cache_after = (
        words_for_bytes(values[f"{what}_{when}"])
        for what in ("bytes", "kv_bytes_per_token")
        for when in ("before", "after")
    )
    windows = f" on {values['calibration_windows']} windows" if values["calibration_windows"] else ""
    budget, step = values["budget"], values["compensation"].get("step", "none")
    lines = [
        f"settings    criterion {values['scoring']['criterion']}{windows}, budget {budget}, compensation {step}",
        f"parameters  {values['parameters_before']:,} → {values['parameters_after']:,}"
        f"  (−{100 * values['ratio_achieved']:.2f} %"
        f"{words_for_parts(values['contributions'], values['parameters_before'])})",
        f"on disk     {disk_before} → {disk_after} ({values['dtype']})",
        f"KV cache    {cache_before} → {cache_after} per token",
        f"hidden      {values['hidden_before']} → {values['hidden_after']}",
        *_layers(values["layers_before"], values["layers_after"]),
        f"export      {values['export']}",
        *(f"note        {line}" for line in values["adjustments"]),
    ]
    if budget != "uniform":
        lines.append(
            f"note        shapes of an even spread; by the scores, budget '{budget}' decides what each layer gives,"
            " and so the class"
        )
    return "\n".join([*lines, *values["scoring"]["words"], *values["compensation"].get("words", [])])


def _shown_mask(values: Mapping[str, Any]) -> str:
    zeros = values["sparsity"]
    about, spread = ("about ", "; their spread follows the scores") if zeros["by_scores"] else ("", "")
    lines = [
        f"zeros       {about}{zeros['zeros']:,} of {zeros['weights']:,} weights in {zeros['matrices']} matrices"
        f" ({100 * zeros['zeros'] / zeros['weights']:.2f} %; {100 * zeros['of_model']:.2f} % of the model's);"
        f" {zeros['pattern']}{spread}",
        f"parameters  {values['parameters']:,}, as before",
        f"on disk     {words_for_bytes(values['bytes'])} ({values['dtype']}), as before: zeros are stored",
        f"export      {values['export']}, shapes as before",
        *values["scoring"]["words"],
    ]
    return "\n".join(lines)


def _layers(before: list[Any], after: list[Any]) -> list[str]:
    """How many layers stay, and one line for each run of these that are alike."""
    stay = [i for i, new in enumerate(after) if new is not None]
    lines = []
    for words, alike in groupby(stay, key=lambda i: _layer(before[i], after[i])):
        first, *others = alike
        label = f"{first}-{others[-1]}" if others else f"{first}"
        lines.append(f"  {label:<10}{words}")
    which = "; which of them go follows the scores" if len(stay) < len(before) else ""
    return [f"layers      {len(before)} → {len(stay)}{which}", *lines]


def _layer(old: dict[str, int], new: dict[str, int]) -> str:
    names = (("heads", "heads"), ("kv_heads", "KV heads"), ("channels", "channels"))
    return ", ".join(f"{old[key]} → {new[key]} {noun}" for key, noun in names)
