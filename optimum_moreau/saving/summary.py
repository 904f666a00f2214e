"""What a pruning run did, as a frozen value that is saved beside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

from ..compensation.compensate import CompensationRecord
from ..config import TARGETS
from ..data.windows import CalibrationRecord
from ..files import Record

SUMMARY_NAME = "pruning_summary.json"
_COUNTS = ("heads", "kv_heads", "head_dim", "channels")  # of a layer
_PACKAGES = ("optimum-moreau", "torch", "transformers", "optimum", "peft", "huggingface_hub", "safetensors")


@dataclass(frozen=True)
class PruningSummary(Record):
    """Counts, shares and times of one run; shares in [0, 1], sizes in parameters or bytes.

    Attributes:
        base_model: Hub id or folder name.
        criterion: its name.
        parameters_before: of the base model, tied ones counted once.
        parameters_after: of the pruned model.
        bytes_before: of the base model's weights, in its dtype.
        bytes_after: of the pruned model's.
        dtype: of the weights.
        ratio_requested: share of the parameters asked for, if that was asked for.
        ratio_achieved: share of the parameters removed.
        unit_ratio_requested: share of the units in scope asked for, if that was asked for.
        unit_ratio_achieved: share of the units in scope removed, by kind.
        export: model type of the result.
        layers_before: per layer heads, KV heads, head width and channels.
        layers_after: the same, pruned; `None` for a layer that is gone.
        hidden_before: channels of the residual stream.
        hidden_after: the same, pruned.
        contributions: target → parameters that it gave.
        adjustments: what legal shapes made of the request.
        calibration: source, seed, counts and hash of the tokens; empty if the criterion needs none.
        seconds: scoring, planning and cutting.
        peak_memory_bytes: highest resident memory of the process, or allocated on the GPU.
        base_card: licence and language of the base model, as its card names them; empty where it cannot be read.
        versions: of the packages involved.
        verified_max_abs_difference: largest logit difference after the reload from disk; `None` before saving.
        compensation: how what stays was adjusted: step, settings, its calibration, and the error of every matrix before
            and after; empty where it was not.
        inputs: sha256 of what a chain made it from; empty outside a chain.
    """

    what: ClassVar[str] = "a pruning summary"

    base_model: str | None
    criterion: str
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    dtype: str
    ratio_requested: float | None
    ratio_achieved: float
    unit_ratio_requested: float | tuple[float, ...] | None
    unit_ratio_achieved: Mapping[str, float]
    export: str
    layers_before: list[dict[str, int]]
    layers_after: list[dict[str, int] | None]
    hidden_before: int
    hidden_after: int
    contributions: Mapping[str, int]
    adjustments: Sequence[str]
    calibration: Mapping[str, Any]
    seconds: float
    peak_memory_bytes: int
    base_card: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    verified_max_abs_difference: float | None = None
    compensation: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = ""

    @property
    def fitted_to(self) -> Mapping[str, Any]:
        """What the model was scored on, or adjusted on where scoring needs no text; empty where neither read any."""
        return self.calibration or self.compensation.get("calibration", {})

    @classmethod
    def parts(cls) -> Mapping[str, type]:
        """What dictionaries in it hold."""
        return {"compensation": CompensationRecord, "calibration": CalibrationRecord}

    def problem(self) -> str:
        """What makes these counts none that a pruning can have; empty if nothing does."""
        sizes = ("parameters_before", "parameters_after", "bytes_before", "bytes_after")
        if odd := next((name for name in (*sizes, "hidden_before", "hidden_after") if getattr(self, name) < 1), None):
            return f"{odd}: {getattr(self, odd)} is no count"
        if len(self.layers_before) != len(self.layers_after):
            return f"layers_after: {len(self.layers_after)} layers, layers_before has {len(self.layers_before)}"
        if strangers := {*self.contributions, *self.unit_ratio_achieved} - {*TARGETS}:
            return f"contributions: '{min(strangers)}' is no target"
        for name in ("layers_before", "layers_after"):
            for i, layer in enumerate(getattr(self, name)):
                if layer is not None and (layer.keys() != {*_COUNTS} or min(layer.values()) < 1):
                    return f"{name}.{i}: does not hold one count for each of {', '.join(_COUNTS)}"
        return ""


def versions() -> dict[str, str]:
    """Returns the versions of the packages a checkpoint depends on."""
    return {name: version(name) for name in _PACKAGES}
