"""What was measured of a model before and after pruning, saved beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import filled, read_json, write_json

EVALUATION_NAME = "evaluation.json"
STAGES = ("before", "pruned", "recovered")
CALIBRATED, OTHER = "calibration text", "other text"
CALIBRATED_ALONE = (
    "measured on the calibration text alone: a figure on what was fitted to says little of other texts; measure one"
    " unlike it as well, e.g. hub:Salesforce/wikitext:wikitext-2-raw-v1:test"
)


@dataclass(frozen=True)
class Measurement:
    """One figure of one stage.

    Attributes:
        stage: `before` pruning, `pruned`, or `recovered`.
        dataset: name of the file or dataset, without folders.
        metric: its name, e.g. `perplexity`.
        protocol: how it was measured, e.g. `128-token segments after <s>`.
        value: the figure.
        sha256: of the file or dataset name that was measured on; empty where it was neither.
        stderr: its standard error, where the metric has one.
    """

    stage: str
    dataset: str
    metric: str
    protocol: str
    value: float
    sha256: str = ""
    stderr: float | None = None

    @property
    def words(self) -> str:
        """The figure for a reader: a perplexity, or an accuracy in percent with its standard error."""
        if self.stderr is None:
            return f"{self.value:.4f}"
        return f"{100 * self.value:.1f} ± {100 * self.stderr:.1f} %"

    @property
    def what(self) -> tuple[str, str, str]:
        """What is measured, whatever the stage."""
        return self.dataset, self.metric, self.protocol

    def likeness(self, calibration: Mapping[str, Any]) -> str:
        """Whether a perplexity is of the text that was calibrated on, as a plan records that; empty if unknown."""
        drawn = calibration.get("text_sha256")  # `None`: an older record, which has the name alone; empty: no file
        if self.metric != "perplexity" or not self.sha256 or not calibration or drawn == "":
            return ""
        same = self.dataset == calibration.get("source") if drawn is None else self.sha256 == drawn
        return CALIBRATED if same else OTHER


def is_of_calibration_alone(measurements: Sequence[Measurement], calibration: Mapping[str, Any]) -> bool:
    """Whether perplexities were measured on the calibration text, and on no other."""
    return {one.likeness(calibration) for one in measurements if one.metric == "perplexity"} == {CALIBRATED}


def by_stage(measurements: Sequence[Measurement]) -> dict[tuple[str, str, str], dict[str, Measurement]]:
    """What is measured → stage → figure, the last where a stage was measured twice."""
    found: dict[tuple[str, str, str], dict[str, Measurement]] = {}
    for one in measurements:
        found.setdefault(one.what, {})[one.stage] = one
    return found


def with_new(old: Sequence[Measurement], new: Sequence[Measurement]) -> list[Measurement]:
    """New figures beside the old ones, each in the place of an old one of its stage.

    An old figure of another text of the same name goes: the two would stand side by side as if of one text.
    """
    stages, texts = {(one.stage, one.what) for one in new}, {one.what: one.sha256 for one in new}
    of_one_text = [one for one in old if texts.get(one.what, one.sha256) == one.sha256]
    return [*(one for one in of_one_text if (one.stage, one.what) not in stages), *new]


def save_measurements(measurements: Sequence[Measurement], path: str | Path) -> None:
    """Writes measurements as JSON."""
    write_json(path, [asdict(one) for one in measurements])


def load_measurements(path: str | Path) -> list[Measurement]:
    """Reads measurements.

    Raises:
        CheckpointError: the file is damaged.
    """
    values = read_json(path, "a list of measurements")
    if not isinstance(values, list):
        raise CheckpointError(f"{path}: cannot be read as a list of measurements; remove it, and measure again")
    return [filled(Measurement, value, f"{path}: entry {i}", "a measurement") for i, value in enumerate(values)]


def perplexities(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The perplexity of each stage, if any was measured, and the protocol."""
    found = {one.stage: one.value for one in measurements}
    return {"perplexity": found, "protocol": measurements[-1].protocol} if measurements else {}
