"""Measures two models by turns, each round of each in a process of its own: one model in memory at a time."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import PretrainedConfig

from ...data.sources import model_reference
from ...errors import CheckpointError, ConfigError, first_line
from ...files import read_json
from ...files.temporary import temporary_folder
from ...loading import check_same_tokenizer, load_skeleton, weight_files
from ...models.placement import check_device
from ...planning import PruningPlan
from .records import UNITS, Series, Side, Speed

logger = logging.getLogger(__name__)

_SCRIPT = Path(__file__).parent / "process.py"
_LEAST_ROUNDS = 3  # of a comparison: with fewer, chance decides


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured, and how often.

    Attributes:
        batch_sizes: sequences at once.
        prompt_tokens: of the prefill, per sequence.
        new_tokens: decoded after it, per sequence.
        rounds: of each model, in fresh processes.
        repeats: in each process, after one run that is not counted.
    """

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    prompt_tokens: int = 128
    new_tokens: int = 32
    rounds: int = 7
    repeats: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_sizes", tuple(dict.fromkeys(self.batch_sizes)))
        if not self.batch_sizes:
            raise ConfigError("batch_sizes: give at least one, e.g. 1,4,16")
        for name, value in asdict(self).items():
            if (least := min(value) if name == "batch_sizes" else value) < 1:
                raise ConfigError(f"{name}: {least} is not a whole number ≥ 1")


@dataclass(frozen=True)
class _Subject:
    """A model to measure: the name it was given, the folder it is in, its files of weights, and its config."""

    name: str
    folder: Path
    weights: tuple[Path, ...]
    config: PretrainedConfig

    def side(self, rounds: list[Mapping[str, Any]], batch_sizes: tuple[int, ...]) -> Side:
        """Everything that was measured of it, one dictionary a round."""
        series = tuple(
            Series(metric, batch, tuple(float(one[metric][index]) for one in rounds))
            for metric in UNITS
            if metric in rounds[0]
            for index, batch in enumerate((None,) if metric in ("load time", "peak memory") else batch_sizes)
        )
        layers: Any = self.config.per_layer_config
        hidden = self.config.hidden_size
        return Side(
            name=model_reference(self.name) or self.name,
            parameters=rounds[0]["parameters"],
            bytes_on_disk=sum(file.stat().st_size for file in self.weights),
            hidden_size=hidden,
            attention_widths=tuple(
                one.num_attention_heads * (getattr(one, "head_dim", None) or hidden // one.num_attention_heads)
                for one in layers
            ),
            mlp_channels=tuple(one.intermediate_size for one in layers),
            series=series,
        )


def measure_speed(
    model: str,
    baseline: str | None = None,
    settings: SpeedSettings | None = None,
    *,
    plan: PruningPlan | None = None,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Speed:
    """Measures a model, by turns with its base; `records.py` says by which law the two are compared.

    Args:
        model: folder or Hub id.
        baseline: of the model it was pruned from, which has the same tokenizer; `None`: the model alone.
        settings: what is measured, and how often.
        plan: by which the model was pruned; the baseline must be its base then.
        dtype: `auto` (as saved), `float32`, `bfloat16` or `float16`.
        device: torch device, or `auto` to spread each model over all GPUs; default: cuda where there is one.
        revision: of the model's Hub repository.
        trust_remote_code: run modeling code that lies beside the weights.

    Raises:
        CheckpointError: a model is not found, damaged, or its measurement broke off.
        ConfigError: a setting cannot be met, or the two are not comparable: other tokenizers, other dtypes.
        PlanError: the baseline is not the plan's base; found out in the first round.
        UnsupportedModelError: of another family.
    """
    settings = settings or SpeedSettings()
    if device != "auto":
        check_device(device)
    asked = [(model, revision), *([] if baseline is None else [(baseline, None)])]
    how: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    subjects = _subjects(asked, settings, **how)
    common = {**how, "device": device, "threads": torch.get_num_threads(), **asdict(settings)}
    found = _by_turns(subjects, settings.rounds, common, plan)
    sides = [subject.side(rounds, settings.batch_sizes) for subject, rounds in zip(subjects, found, strict=True)]
    where = {name: found[0][0][name] for name in ("device", "dtype")}
    how_often = {name: value for name, value in asdict(settings).items() if name != "batch_sizes"}
    return Speed(**where, **how_often, model=sides[0], baseline=None if baseline is None else sides[1])


def _subjects(
    asked: Sequence[tuple[str, str | None]], settings: SpeedSettings, *, dtype: str, trust_remote_code: bool
) -> list[_Subject]:
    """The models to measure, each a name and a revision, the second the first one's base; refused if they cannot be."""
    if len(asked) > 1 and settings.rounds < _LEAST_ROUNDS:
        raise ConfigError(
            f"rounds: {settings.rounds} cannot tell chance from speed-up; give at least {_LEAST_ROUNDS} beside a base"
        )
    code: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    skeletons = [load_skeleton(name, revision=commit, dtype=dtype, **code) for name, commit in asked]
    length = settings.prompt_tokens + settings.new_tokens
    for skeleton, (name, _) in zip(skeletons, asked, strict=True):
        most = getattr(skeleton.config, "max_position_embeddings", None)
        if most is not None and length > most:
            raise ConfigError(
                f"{name}: has {most} positions, and {settings.prompt_tokens} prompt_tokens and {settings.new_tokens}"
                f" new_tokens need {length}; lower one of them"
            )
    if len(asked) > 1:
        (model, revision), (baseline, _) = asked
        first, second = (str(skeleton.dtype).removeprefix("torch.") for skeleton in skeletons)
        if first != second:
            raise ConfigError(f"dtype: {model} is in {first}, {baseline} in {second}; give --dtype, one for both")
        check_same_tokenizer(model, baseline, revision=revision, **code)
    return [_subject(*one, skeleton.config) for one, skeleton in zip(asked, skeletons, strict=True)]


def _by_turns(
    subjects: Sequence[_Subject], rounds: int, request: Mapping[str, Any], plan: PruningPlan | None
) -> list[list[Mapping[str, Any]]]:
    """What was measured of each subject in each round; every second round begins with the last one."""
    found: list[list[Mapping[str, Any]]] = [[] for _ in subjects]
    pairs = list(zip(subjects, found, strict=True))
    for number in range(rounds):
        for subject, own in pairs if number % 2 == 0 else pairs[::-1]:
            start = time.perf_counter()
            own.append(measure_once(subject.name, subject.folder, subject.weights, request))
            if plan is not None and subject is not subjects[0]:
                plan.check_base(own[-1]["fingerprint"], subject.name)
            passed = time.perf_counter() - start
            logger.info("round %d of %d: %s, %.0f s", number + 1, rounds, subject.name, passed)
    return found


def measure_once(name: str, folder: Path, weights: tuple[Path, ...], request: Mapping[str, Any]) -> dict[str, Any]:
    """Measures one model in a fresh process; the request is what `process.py` reads, but for folder, files and paths.

    Raises:
        CheckpointError: the process broke off.
    """
    with temporary_folder("speed") as work:
        result = work / "result.json"
        files = {"folder": str(folder), "weights": list(map(str, weights)), "result": str(result), "path": sys.path}
        command = [sys.executable, "-P", str(_SCRIPT)]
        process = subprocess.run(command, input=json.dumps({**request, **files}), capture_output=True, text=True)
        if process.returncode:
            reason = (process.stderr.strip().split("\n") or [""])[-1]
            if process.returncode < 0:
                reason = f"ended by {signal.Signals(-process.returncode).name}, perhaps for want of memory"
            if "memory" in reason.lower():
                reason += "; give smaller --batch-sizes"
            raise CheckpointError(f"{name}: cannot be measured in a fresh process ({reason})")
        return dict(read_json(result, "what was measured"))


def _subject(name: str, revision: str | None, config: PretrainedConfig) -> _Subject:
    """Finds the folder of a model, downloaded where it is not here yet, and its files of weights."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        wanted = ["model*.safetensors", "*.json", "*.py"]
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
            raise CheckpointError(f"{name}: cannot be downloaded ({first_line(error)})") from error
    files = weight_files(folder)
    if missing := next((file.name for file in files if not file.is_file()), None):
        raise CheckpointError(f"{name}: holds no {missing}; weights must be safetensors")
    return _Subject(name, folder, tuple(files), config)
