"""`PruningPlan`: which units of which layers stay, as a small JSON file; the base it was made for; what it removes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import MoreauError, PlanError
from ..files import filled, read_json, write_text
from ..models.families import Kind
from ..models.placement import parameter_values
from ..models.units import Block, ModelShape
from ..scoring.scores import Origin

PLAN_NAME = "pruning_plan.json"
FORMAT_VERSION = 1
_REQUIRED = ("format_version", "model_type", "layers")
_SAMPLE = 4096


@dataclass(frozen=True)
class Kept:
    """The units of one block that stay.

    Attributes:
        kept: sorted unit indices.
        total: number of units before.
    """

    kept: tuple[int, ...]
    total: int

    @classmethod
    def whole(cls, total: int) -> Kept:
        """All of so many."""
        return cls(tuple(range(total)), total)

    @property
    def removed(self) -> int:
        """Number of units that go."""
        return self.total - len(self.kept)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary that JSON can hold."""
        return {"kept": list(self.kept), "total": self.total}


@dataclass(frozen=True)
class _Noted:
    """What a plan's file says beside its layers and its origin."""

    model_type: str
    contributions: Mapping[Kind, int] = field(default_factory=dict)
    adjustments: tuple[str, ...] = ()


@dataclass(frozen=True)
class PruningPlan:
    """What stays of a model.

    Attributes:
        model_type: of the base model's config.
        layers: layer index → `attention` / `mlp` → the units that stay.
        base_model: Hub id or folder name of the base model, if known.
        revision: its revision, if known.
        fingerprint: identifies the base weights (`fingerprint`).
        hidden: the channels of the residual stream that stay; `None`: all.
        kept_layers: kept layers; `None`: all. The entries in `layers` of those that go keep everything.
        config: the resolved config the plan was made with, as a dictionary.
        calibration: source, seed, counts and hash of the calibration tokens.
        contributions: target → parameters that it gives; layers go first, then hidden channels, then units.
        adjustments: what legal shapes made of the request, in words.
    """

    model_type: str
    layers: Mapping[int, Mapping[str, Kept]]
    base_model: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    hidden: Kept | None = None
    kept_layers: tuple[int, ...] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    contributions: Mapping[str, int] = field(default_factory=dict)
    adjustments: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """What stays, in one line."""
        kept = {kind: [layer[kind] for layer in self.layers.values() if kind in layer] for kind in ("attention", "mlp")}
        units = (f"{sum(len(k.kept) for k in ks)} of {sum(k.total for k in ks)} {kind}" for kind, ks in kept.items())
        return (
            f"PruningPlan({self.model_type}, {len(self.layers) - len(self.removed_layers)} layers: {', '.join(units)})"
        )

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """The layers that go."""
        return tuple(sorted(set(self.layers) - set(self.kept_layers or self.layers)))

    @property
    def removes(self) -> bool:
        """Whether anything goes."""
        units = (kept for layer in self.layers.values() for kept in layer.values())
        return self.narrows or bool(self.removed_layers) or any(kept.removed for kept in units)

    @property
    def narrows(self) -> bool:
        """Whether hidden channels go."""
        return self.hidden is not None and self.hidden.removed > 0

    def kept(self, block: Block) -> Kept:
        """Returns which units of a block stay; of a whole layer, unit 0 or none."""
        if block.kind == "hidden":
            return self.hidden or Kept.whole(block.total)
        assert block.layer is not None  # every other kind lies in a layer
        if block.kind == "layers":
            return Kept(() if block.layer in self.removed_layers else (0,), 1)
        return self.layers[block.layer][block.kind]

    def check_base(self, found: str, name: str) -> None:
        """Refuses a model that is not the one the plan was made for.

        Args:
            found: fingerprint of that model.
            name: of it, for the message.

        Raises:
            PlanError: it is another; a plan without a fingerprint (written by hand) takes any.
        """
        if self.fingerprint is not None and found != self.fingerprint:
            raise PlanError(
                f"{name}: is not the model this was pruned from ({self.base_model or 'no name on record'}): its weights"
                " differ; give that one"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as a dictionary that JSON can hold."""
        layers = {str(i): {kind: kept.to_dict() for kind, kept in blocks.items()} for i, blocks in self.layers.items()}
        return {
            "format_version": FORMAT_VERSION,
            "base_model": self.base_model,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "model_type": self.model_type,
            "layers": layers,
            "hidden": self.hidden and self.hidden.to_dict(),
            "kept_layers": self.kept_layers and list(self.kept_layers),
            "contributions": dict(self.contributions),
            "adjustments": list(self.adjustments),
            "config": dict(self.config),
            "calibration": dict(self.calibration),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruningPlan:
        """Makes a plan from a dictionary.

        Raises:
            PlanError: a part is missing or damaged, or the format is newer than this package.
        """
        for key in _REQUIRED:
            if not isinstance(values, Mapping) or key not in values:
                raise PlanError(f"plan: '{key}' is missing; is this a {PLAN_NAME}?")
        if values["format_version"] is True or values["format_version"] != FORMAT_VERSION:
            raise PlanError(f"plan: format version {values['format_version']!r}, this package reads {FORMAT_VERSION}")
        layers = _layers(values["layers"])
        origin = {one.name: values[one.name] for one in fields(Origin) if values.get(one.name) is not None}
        filled(Origin, origin, "plan", "the record of a run", PlanError)
        named = {one.name: values[one.name] for one in fields(_Noted) if values.get(one.name) is not None}
        noted = filled(_Noted, named, "plan", "a pruning plan", PlanError)
        rest: dict[str, Any] = {**origin, **vars(noted)}
        if values.get("hidden") is not None:
            rest["hidden"] = _kept("hidden", values["hidden"])
        if values.get("kept_layers") is not None:
            rest["kept_layers"] = _kept("kept_layers", {"kept": values["kept_layers"], "total": len(layers)}).kept
        return cls(layers=layers, **rest)

    def save(self, path: str | Path) -> Path:
        """Writes the plan as JSON, one line per layer and kind; returns the file.

        Raises:
            PlanError: the file cannot be written.
        """
        values = self.to_dict()
        lines = ",\n".join(
            f'    "{i}": {{\n' + ",\n".join(f'      "{k}": {json.dumps(b)}' for k, b in blocks.items()) + "\n    }"
            for i, blocks in values.pop("layers").items()
        )
        head, tail = json.dumps(values | {"layers": "@"}, indent=2).rsplit('"@"', 1)
        write_text(path, f"{head}{{\n{lines}\n  }}{tail}\n", PlanError)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Reads a plan from its file, or from the pruned folder that holds it.

        Raises:
            PlanError: the file is missing, is not JSON, or is damaged.
        """
        path = Path(path).expanduser()
        path = path / PLAN_NAME if path.is_dir() else path
        values = read_json(path, "a pruning plan", PlanError)
        try:
            return cls.from_dict(values)
        except MoreauError as error:
            raise PlanError(f"{path}: {error}") from error

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> PruningPlan:
        """Reads the plan of a pruned model, from its folder or from the Hub.

        Raises:
            PlanError: there is none, or it is damaged.
        """
        if Path(name_or_path).expanduser().exists():
            return cls.load(Path(name_or_path).expanduser())
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError

        try:
            file = hf_hub_download(str(name_or_path), PLAN_NAME, revision=revision, token=token)
        except (HFValidationError, OSError) as error:  # those of the Hub are OSErrors
            raise PlanError(f"{name_or_path}: no folder here, and no {PLAN_NAME} on the Hub") from error
        return cls.load(file)

    def check_matches(self, model: nn.Module, shape: ModelShape) -> None:
        """Refuses a model that the plan was not made for, naming the first mismatch.

        Raises:
            PlanError: model type, depth, unit counts or weights differ.
        """
        if self.model_type != shape.family.model_type:
            raise PlanError(f"plan is for model type '{self.model_type}', this model is '{shape.family.model_type}'")
        if set(self.layers) != set(range(shape.depth)):
            first = min(set(self.layers) ^ set(range(shape.depth)))
            raise PlanError(
                f"plan has {len(self.layers)} layers, this model has {shape.depth}: layers.{first} is in one only"
            )
        for block in shape.blocks:
            found = self.layers[block.layer].get(block.kind) if block.layer is not None else None
            if found is None or found.total != block.total:
                have = f"{found.total} units" if found else "nothing"
                raise PlanError(f"{block.where}: plan has {have}, this model has {block.total} units")
        stay = self.kept_layers
        if stay is not None and (not stay or sorted(set(stay)) != list(stay) or not {*stay} <= {*range(shape.depth)}):
            raise PlanError(f"kept_layers: must be sorted, distinct, not empty, and within 0..{shape.depth - 1}")
        if self.hidden is not None and shape.hidden is not None:
            if self.hidden.total != shape.hidden.total:
                raise PlanError(f"hidden: plan has {self.hidden.total} channels, this model has {shape.hidden.total}")
            if shape.family.hidden_refusal:
                raise PlanError(f"hidden: plan removes hidden channels, but {shape.family.hidden_refusal}")
        if self.fingerprint is not None and self.fingerprint != fingerprint(model):
            raise PlanError(f"the weights are not those of {self.base_model or 'the model'} that the plan was made for")


def _layers(values: Any) -> dict[int, dict[str, Kept]]:
    if not isinstance(values, Mapping):
        raise PlanError(f"plan: 'layers' is damaged: {values!r:.40} is no dictionary")
    layers = {}
    for index, blocks in values.items():
        if not (isinstance(index, str) and index.isdecimal() and str(int(index)) == index):
            raise PlanError(f"plan: 'layers' is damaged: {index!r} is no layer index")
        if not isinstance(blocks, Mapping) or not set(blocks) <= {"attention", "mlp"}:
            raise PlanError(f"plan: layers.{index} must hold 'attention' and 'mlp', and nothing else")
        layers[int(index)] = {kind: _kept(f"layers.{index}.{kind}", block) for kind, block in blocks.items()}
    return layers


def _kept(where: str, block: Any) -> Kept:
    kept, total = (block.get("kept"), block.get("total")) if isinstance(block, Mapping) else (None, None)
    if type(total) is not int or not isinstance(kept, list) or not all(type(unit) is int for unit in kept):
        raise PlanError(f"plan: {where}: 'kept' must list unit indices and 'total' count them")
    if not kept or sorted(set(kept)) != kept or kept[0] < 0 or kept[-1] >= total:
        raise PlanError(f"plan: {where}: 'kept' must be sorted, distinct, not empty, and within 0..{total - 1}")
    return Kept(tuple(kept), total)


def fingerprint(model: nn.Module) -> str:
    """Identifies a model's weights, whatever dtype they are loaded in: sha256 over names, shapes and sampled signs.

    Rounding to another dtype keeps every sign. At least 4096 elements of each larger parameter are sampled, at a fixed
    stride: another model, or one tuned enough to flip one of those signs, is told apart; a change that flips none is
    not.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        flat = parameter_values(model, name).reshape(-1)
        digest.update(torch.signbit(flat[:: max(1, flat.numel() // _SAMPLE)]).cpu().numpy().tobytes())
    return digest.hexdigest()


def remaining(plan: PruningPlan, shape: ModelShape) -> ModelShape:
    """The shape once the plan's layers and hidden channels are gone, its heads and MLP channels still whole."""
    return shape.without_layers(plan.removed_layers).narrowed(plan.hidden.removed if plan.hidden else 0)


def contributions(plan: PruningPlan, shape: ModelShape) -> dict[str, int]:
    """Returns exactly how many parameters each kind of unit gives: layers first, then hidden channels, then units."""
    rest, narrow = shape.without_layers(plan.removed_layers), remaining(plan, shape)
    given = {"layers": shape.parameters - rest.parameters, "hidden": rest.parameters - narrow.parameters}
    for kind in ("attention", "mlp"):
        given[kind] = sum(plan.kept(block).removed * block.unit_parameters for block in narrow.of(kind))
    return {kind: count for kind, count in given.items() if count}


def removed_parameters(plan: PruningPlan, shape: ModelShape) -> int:
    """Returns how many parameters a plan removes, exactly."""
    return sum(contributions(plan, shape).values())


def removed_unit_share(plan: PruningPlan, blocks: Sequence[Block]) -> dict[str, float]:
    """Returns the share of the units in scope that go, by kind; heads and channels of the layers that stay."""
    shares: dict[str, float] = {}
    for kind in dict.fromkeys(block.kind for block in blocks):
        gone = plan.removed_layers if kind in ("attention", "mlp") else ()
        kepts = [plan.kept(block) for block in blocks if block.kind == kind and block.layer not in gone]
        shares[kind] = sum(kept.removed for kept in kepts) / max(sum(kept.total for kept in kepts), 1)
    return shares
