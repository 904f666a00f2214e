"""Verifies a saved checkpoint: a fresh process reloads it and must compute the logits of the model in memory.

The fresh process (`reload_process.py`) does not import this package. A stock export is loaded without remote code; an
own type through the modeling file beside its weights, once that was seen to be this package's (`trust.py`).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import CheckpointError
from ..files import read_shapes, write_tensors
from ..files.temporary import temporary_folder
from ..loading import code_may_run
from ..models.buffers import as_reloaded
from ..models.placement import input_device, is_offloaded
from ..models.undisturbed import plain_outputs, undisturbed

RELOAD_SCRIPT = Path(__file__).parent / "reload_process.py"
_WINDOWS = 2
# Kernels may be chosen anew in another process. With the same ones the logits are equal; measured in units of ε of the
# dtype times the largest logit (3e5 and 5e6 parameters, CPU), another number of threads gave 4.3 in float32 and 0
# in 16 bits, where sums run in float32 and are rounded at the end; RoPE's frequencies cast to float16 gave 2 to 4 in
# float16 and 10⁴ in float32. Models of float64 compute norms and RoPE in float32, and their logits are compared in it.
_STEPS, _STEPS_16_BIT = 16, 1


@dataclass(frozen=True)
class Verification:
    """What the reload showed.

    Attributes:
        max_abs_difference: largest difference of any logit.
        tokens: number of tokens compared.
    """

    max_abs_difference: float
    tokens: int


def verify(
    model: PreTrainedModel, folder: str | Path, tokens: Tensor, *, trust_remote_code: bool = False
) -> Verification:
    """Reloads `folder` in a fresh process and compares logits; the model's weights are on disk meanwhile.

    Args:
        model: the model that was saved.
        folder: where it was saved.
        tokens: token ids `(windows, length)`; the first two windows are compared.
        trust_remote_code: the user's word on code in the folder that is not this package's.

    Raises:
        CheckpointError: the folder does not load, holds code that may not run, or its weights or logits differ; says
            where, without the folder's name, which `save_folder` knows. The model is as it was.
    """
    tokens = tokens[:_WINDOWS].to(torch.int64).contiguous()
    remote_code = code_may_run(folder, trust_remote_code)
    expected = _logits(model, tokens)
    with parked(model, Path(folder)), temporary_folder("verify") as work:
        spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
        device = "auto" if spread else str(input_device(model))
        attention = model.config._attn_implementation
        reloaded = reload_logits(str(folder), tokens, work, device=device, attention=attention, remote_code=remote_code)
    same = (reloaded == expected) | (reloaded.isnan() & expected.isnan())
    difference = (reloaded - expected).abs().nan_to_num(torch.inf).masked_fill(same, 0.0)
    worst = float(difference.max())
    if worst > tolerance(model.dtype) * float(expected.abs().nan_to_num(0.0, posinf=0.0).max()):
        window, position, token = torch.unravel_index(difference.argmax(), difference.shape)
        where = f"window {int(window)}, position {int(position)}, token {int(token)}"
        raise CheckpointError(f"does not reload as it was saved: logits differ by {worst:.3g} ({where})")
    return Verification(worst, tokens.numel())


def tolerance(dtype: torch.dtype) -> float:
    """The share of the largest logit by which logits may differ though the weights are the same: a few roundings."""
    return _STEPS_16_BIT * torch.finfo(dtype).eps if dtype.itemsize < 4 else _STEPS * torch.finfo(torch.float32).eps


@undisturbed()
@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    training, device = model.training, input_device(model)
    model.eval()
    try:
        with as_reloaded(model), plain_outputs(model):
            rows = [model(input_ids=row[None].to(device), use_cache=False).logits.float().cpu() for row in tokens]
    finally:
        model.train(training)
    return torch.cat(rows)  # (windows, length, vocabulary)


def reload_logits(
    name: str,
    tokens: Tensor,
    work: Path,
    *,
    device: str = "cpu",
    attention: str | None = None,
    remote_code: bool = False,
    revision: str = "main",
    cache: str | None = None,
) -> Tensor:
    """Logits of a checkpoint, float32 `(windows, length, vocabulary)`, of a process without this package and network.

    Args:
        name: folder, or Hub id of what is in the cache.
        tokens: token ids `(windows, length)`.
        work: an empty folder.
        device: torch device, or `auto`.
        attention: implementation; default: the model's.
        remote_code: run the modeling file beside the weights; never read off the folder alone (`code_may_run`).
        revision: of the Hub.
        cache: of the Hub; default: the user's.

    Raises:
        CheckpointError: it does not load.
    """
    write_tensors(work / "tokens.safetensors", {"tokens": tokens})
    request = {
        "name": name,
        "remote": {"revision": revision, "trust_remote_code": remote_code},
        "device": device,
        "threads": torch.get_num_threads(),
        "attention": attention,
    }
    places = {"HF_MODULES_CACHE": str(work / "modules"), **({"HF_HUB_CACHE": cache} if cache else {})}
    process = subprocess.run(
        [sys.executable, "-P", str(RELOAD_SCRIPT)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=work,
        env={**os.environ, **places, "HF_HUB_OFFLINE": "1"},
    )
    if process.returncode:
        reason = process.stderr.strip().rpartition("\n")[-1]
        raise CheckpointError(f"does not load in a fresh process ({reason})")
    return load_file(work / "logits.safetensors")["logits"]


@contextmanager
def parked(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """In place, for a while: frees the parameters, which are on disk in `folder`, and reads them back at the end.

    Where a parameter's name is not in the files (a family saved under other names), all stay in memory; what is
    offloaded stays where it is.

    Raises:
        CheckpointError: a parameter on disk is not the one in memory, which therefore is not freed.
    """
    files = {name: file for file in folder.glob("*.safetensors") for name in read_shapes(file, "weights")}
    parameters = dict(model.named_parameters())
    if is_offloaded(model) or not parameters.keys() <= files.keys():
        parameters = {}
    for name, saved in _tensors(files.values(), parameters):
        if not torch.equal(saved, parameters[name].detach().cpu()):
            raise CheckpointError(f"{name} on disk is not what was saved")
    devices = {name: parameter.device for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.data = parameter.data.new_empty(0)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for name, saved in _tensors(files.values(), parameters):
            parameters[name].data = saved.clone().to(devices[name])


def _tensors(files: Iterable[Path], names: Container[str]) -> Iterator[tuple[str, Tensor]]:
    for file in set(files):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a file, not a dictionary)
                if name in names:
                    yield name, tensors.get_tensor(name)
