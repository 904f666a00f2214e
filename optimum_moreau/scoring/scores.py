"""Element scores → unit scores, through the family's slices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import MoreauPrunerConfig
from ..criteria.scoring_run import Scoring
from ..data.windows import CalibrationRecord
from ..distributed import add_up, is_distributed, of_first, processes, share
from ..envelope import scoring_mode
from ..errors import ConfigError, DataError, NonFiniteError, PlanError, UnsupportedModelError
from ..files import filled, parse_json, read_tensors, write_tensors
from ..models.families import Cut
from ..models.placement import is_offloaded
from ..models.units import Block, ModelShape
from .profiles import Measuring, check_text, layer_influence, measures, measures_outliers, unit_flows

SCORES_NAME = "pruning/pruning_scores.safetensors"  # not at the top, where vLLM takes it for weights
_OLD_SCORES_NAME = "pruning_scores.safetensors"  # where 0.1 wrote them at first
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Eq. 5: how the coupled matrices of a unit combine, over the first dimension of `(matrices, units)`.
AGGREGATIONS: dict[str, Any] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "prod": torch.prod}


def find_scores(folder: str | Path) -> Path | None:
    """The file of the scores in a pruned folder, of this version or an older one; `None` where there is none."""
    places = [Path(folder).expanduser() / name for name in (SCORES_NAME, _OLD_SCORES_NAME)]
    return next((place for place in places if place.is_file()), None)


# `layers.3.mlp` → scores of its units, and what a budget measured beside them.
Ranking = Mapping[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """What scores and plans record of their making.

    Attributes:
        base_model: Hub id or folder name of the base model.
        revision: its revision.
        fingerprint: identifies the base weights.
        config: the resolved config, as a dictionary.
        calibration: of the windows; empty where none were read.
    """

    base_model: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    calibration: CalibrationRecord = field(default_factory=CalibrationRecord)

    def __post_init__(self) -> None:
        if self.config:
            MoreauPrunerConfig.from_dict(self.config)


@dataclass(frozen=True)
class UnitScores:
    """Importance of every unit in scope.

    Attributes:
        values: `layers.3.mlp`, `hidden` → float64 tensor `(units,)` on CPU, `layers.3` → `(1,)` for the whole layer;
            larger is more important. What a budget or `protect_outliers` measured is beside them (scoring/profiles.py).
        origin: what a plan records of its making: base model, revision, fingerprint, config, calibration.
    """

    values: dict[str, Tensor]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Writes the scores as safetensors; raises PlanError where that cannot be."""
        write_tensors(path, self.values, {"origin": json.dumps(dict(self.origin))}, PlanError)

    @classmethod
    def load(cls, path: str | Path) -> UnitScores:
        """Reads what `save` wrote.

        Args:
            path: of the file, or of the pruned folder that holds it.

        Raises:
            PlanError: the file is missing or not safetensors, or a score is no finite number.
        """
        path, what = find_scores(path) or path, "unit scores"
        values, metadata = read_tensors(path, what, PlanError)
        origin = parse_json(metadata.get("origin", "{}"), f"{path}: origin", "a dictionary", PlanError)
        made = filled(Origin, origin, f"{path}: origin", "the record of a run", PlanError)
        in_rounds = made.config.get("rounds", 1) > 1  # −∞ are units that went in an earlier one
        for name, tensor in values.items():
            damaged = f"{path}: cannot be read as {what}: {name}"
            if tensor.dim() != 1 or not len(tensor) or tensor.dtype not in _DTYPES:
                kind = f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
                raise PlanError(f"{damaged} is {kind}; needed are finite numbers, one for each unit")
            if not (torch.isfinite(tensor) | (tensor.isneginf() & in_rounds)).all():
                raise PlanError(f"{damaged} holds NaN or an infinite score; score the model again")
        return cls({name: tensor.to(torch.float64) for name, tensor in values.items()}, origin)


def score_units(
    model: PreTrainedModel,
    shape: ModelShape,
    tokens: Tensor | None,
    config: MoreauPrunerConfig,
    *,
    checkpoint: Path | None = None,
    run: str = "",
) -> UnitScores:
    """Scores every unit in scope; the model is left bit for bit as it was.

    Args:
        model: a causal language model.
        shape: its shape.
        tokens: calibration windows `(samples, length)`; may be `None` where `needs_text` says so.
        config: a resolved config.
        checkpoint: folder that keeps every step, so that a run that was killed goes on from it.
        run: what identifies the run, so that another's steps are refused.

    With several processes (torch.distributed), each scores its part of the windows, and all return the same scores.

    Raises:
        NonFiniteError: a loss, gradient or score is NaN or infinite.
        DataError: tokens are missing.
    """
    criterion, blocks, windows = config.criterion, shape.scored(config), 0 if tokens is None else len(tokens)
    _check_scorable(model, tokens, config)
    values: dict[str, Tensor] = {}
    # a caller's inference mode would forbid the gradients; tokens made in it cannot be saved for the backward pass
    with torch.inference_mode(False), scoring_mode(model), torch.no_grad():
        batches = [] if tokens is None else list(share(tokens.clone()).split(config.batch_size or len(tokens)))
        if tokens is not None and config.by_influence:
            influence = layer_influence(model, tokens, config)  # (layers,)
            values |= {whole.where: influence[i : i + 1] for i, whole in enumerate(shape.wholes)}
        if blocks:
            sums = UnitSums(blocks, absolute_each=criterion.absolute_each())
            scoring = Scoring(model, blocks, batches, windows, config, sums.add, checkpoint, run, criterion.sides)
            criterion.score(scoring)
            if criterion.partial():
                sums.add_up_processes()
            values |= sums.combined(criterion.aggregation, signed=criterion.signed)
        _check_finite(values, criterion.name)
        if tokens is not None and measures(config):
            values |= config.budget.measure(Measuring(model, shape, tokens, batches, values, config))
        if tokens is not None and measures_outliers(config):
            values |= unit_flows(model, shape.in_scope(config, "attention", "mlp"), batches, len(tokens))
    return with_layer_sums(UnitScores(of_first(values)), shape, config)


def _check_scorable(model: PreTrainedModel, tokens: Tensor | None, config: MoreauPrunerConfig) -> None:
    """Refuses what has no text or no gradients, and what one process must do."""
    check_text(config, tokens)
    if is_distributed() and tokens is not None and len(tokens) < processes():
        raise DataError(f"{processes()} processes for fewer windows; raise calibration_samples")
    if is_distributed() and getattr(config.criterion, "released", False):
        raise ConfigError("released works in one process only; leave it out under torchrun")
    check_gradients(model, config)


def score_channels(
    model: PreTrainedModel, blocks: tuple[Block, ...], tokens: Tensor | None, config: MoreauPrunerConfig
) -> dict[str, Tensor]:
    """Scores every channel of every matrix of some blocks, in one process; the model is left bit for bit as it was.

    A channel is a row of a matrix whose rows belong to units, otherwise a column: of `q_proj` a row, of `down_proj` a
    column. The sum over a unit's channels is its part in the unit's score (paper, Eq. 4).

    The arguments are as for `score_units`, the blocks of heads and MLP channels.

    Returns:
        `model.layers.3.mlp.up_proj.weight` → float64 tensor `(channels,)` on CPU.
    """
    dims = {name: cut.dim for block in blocks for cut, name in block.weight_names().items()}
    found: dict[str, Tensor] = {}
    criterion, windows = config.criterion, 0 if tokens is None else len(tokens)
    absolute_each = criterion.absolute_each()

    def add(name: str, elements: Tensor) -> None:
        line = elements.sum(dim=1 - dims[name], dtype=torch.float64).cpu()
        line = line.abs_() if absolute_each else line
        found[name] = found[name] + line if name in found else line

    check_gradients(model, config)
    with torch.inference_mode(False), scoring_mode(model), torch.no_grad():
        batches = [] if tokens is None else list(tokens.clone().split(config.batch_size or len(tokens)))
        criterion.score(Scoring(model, blocks, batches, windows, config, add, sides=criterion.sides))
    _check_finite(found, criterion.name)
    return {name: line.abs() for name, line in found.items()}  # signed criteria: the absolute value of the sum


def check_gradients(model: PreTrainedModel, config: MoreauPrunerConfig) -> None:
    """Refuses a model that a criterion of gradients, or the published code's copies, cannot score.

    Raises:
        UnsupportedModelError: it was made under inference mode, or is offloaded.
    """
    if getattr(config.criterion, "released", False) and is_offloaded(model):
        raise UnsupportedModelError("released holds the whole model several times; load it without offload")
    if config.criterion.cost(config).passes and any(parameter.is_inference() for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"{type(model).__name__}: was made under torch.inference_mode and can have no gradients; load it outside,"
            " or take a criterion without gradients (magnitude, random)"
        )


def _check_finite(values: Mapping[str, Tensor], criterion: str) -> None:
    for where, scores in values.items():
        if not torch.isfinite(scores).all():
            raise NonFiniteError(f"{where}: the scores of {criterion} are not finite; check its weights")


def with_layer_sums(scores: UnitScores, shape: ModelShape, config: MoreauPrunerConfig) -> UnitScores:
    """Adds the scores of whole layers in scope, where they are the sums of their units' scores and these are there."""
    if "layers" not in config.targets or config.criterion.layers != "sum":
        return scores
    values = dict(scores.values)
    for whole in shape.in_scope(config, "layers"):
        parts = [values[name] for kind in ("attention", "mlp") if (name := f"{whole.where}.{kind}") in values]
        if whole.where not in values and len(parts) == 2:
            values[whole.where] = (parts[0].sum() + parts[1].sum()).reshape(1)
    return replace(scores, values=values)


def needs_text(config: MoreauPrunerConfig) -> bool:
    """Whether scoring reads calibration text."""
    mask = config.mask
    if mask is not None and (mask.refine or mask.update or config.budget.measured):
        return True
    return config.by_influence or bool(config.criterion.needs) or measures(config) or measures_outliers(config)


class UnitSums:
    """Sums element scores over units, weight by weight as they come (paper, Eq. 4 and 5).

    Args:
        blocks: the units.
        absolute_each: take the absolute value of each matrix's sum as it comes, and not of what all come to.
    """

    def __init__(self, blocks: Iterable[Block], *, absolute_each: bool = False):
        self._blocks, self._absolute_each = tuple(blocks), absolute_each
        self._uses: dict[str, list[tuple[Block, Cut]]] = {}
        for block in self._blocks:
            for cut, name in block.weight_names().items():
                self._uses.setdefault(name, []).append((block, cut))
        self._parts: dict[tuple[str, Cut], Tensor] = {}

    def add(self, name: str, elements: Tensor) -> None:
        """Adds the element scores of one weight, `(out, in)`, to those of its units."""
        for block, cut in self._uses[name]:
            part = block.sum_per_unit(cut, elements)  # (units,), on the elements' device
            part = part.abs() if self._absolute_each else part
            key = (block.where, cut)
            self._parts[key] = self._parts[key] + part if key in self._parts else part

    def add_up_processes(self) -> None:
        """Adds up what every process has, where there are several."""
        add_up(*self._parts.values())

    def combined(self, aggregation: str, *, signed: bool = False) -> dict[str, Tensor]:
        """Combines the sums of the coupled matrices.

        Args:
            aggregation: `sum`, `mean`, `max` or `prod`.
            signed: take the absolute value of each matrix's sum.

        Returns:
            `layers.3.mlp` → float64 tensor `(units,)` on CPU.
        """
        found = {}
        for block in self._blocks:
            scored = [cut for cut in block.cuts if (block.where, cut) in self._parts]  # not all, for some criteria
            parts = torch.stack([self._parts[block.where, cut].cpu() for cut in scored])  # (matrices, units)
            found[block.where] = AGGREGATIONS[aggregation](parts.abs() if signed else parts, dim=0)
        return found


def check_covers(scores: UnitScores, blocks: Iterable[Block]) -> None:
    """Raises PlanError unless there is one score for every unit of every block."""
    for block in blocks:
        found = scores.values.get(block.where)
        if found is None or len(found) != block.total:
            have = "no scores" if found is None else f"{len(found)} scores"
            need = "the whole layer" if block.kind == "layers" else f"{block.total} units"
            raise PlanError(f"{block.where}: {have} for {need}; score this model with this scope first")
