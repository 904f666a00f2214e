"""Where δ is kept: on the weight's device, in CPU memory, or in a file of which one matrix at a time is in memory.

In a file it is kept twice: a step reads the one and writes the other, so that a kill in the middle of a step loses that
step only. `commit` ends a step. Beside δ stand the scales of relative steps, one number for each matrix.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import filled, read_json, read_tensors, write_json, write_tensors
from ..files.temporary import partial_file

LAYERS = "layers-"  # what begins so in the folder is of the compensation (compensation/kept.py)
_STEP, _FILES = "step.json", ("delta-0.bin", "delta-1.bin")


@dataclass(frozen=True)
class _Marker:
    """What says which step is on disk: written when it is whole."""

    step: int
    run: str
    scales: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)


class State:
    """One tensor per weight, zero at first.

    Args:
        shapes: name → shape of each weight.
        dtype: float32 or bfloat16.
        devices: where each weight computes, and its tensor is kept without offload.
        offload: `None`, `cpu`, or `disk`.
        folder: of the files, for `disk`; and where `commit` keeps every step, if given.
        run: what identifies the run, so that another's files are refused.
    """

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        *,
        devices: Mapping[str, torch.device],
        dtype: torch.dtype = torch.float32,
        offload: str | None = None,
        folder: Path | None = None,
        run: str = "",
    ) -> None:
        self.shapes, self.dtype, self.offload, self.folder, self.run = dict(shapes), dtype, offload, folder, run
        self._devices = {name: torch.device("cpu") if offload else devices[name] for name in self.shapes}
        self.step = 0
        self.scales: dict[str, Any] = {}  # s_W of each matrix, where steps are relative (envelope/moreau.py)
        self._starts = dict(zip(self.shapes, accumulate((s.numel() for s in shapes.values()), initial=0), strict=False))
        self._bytes = sum(shape.numel() for shape in shapes.values()) * dtype.itemsize  # of each file
        self._put: set[str] = set()  # since the last step
        # one block a device, made at once: pieces made one by one between a pass's activations would leave holes
        self._memory: dict[str, Tensor] = {}
        if folder is not None:
            self._check_usable(folder)
            self._resume(folder)

    def get(self, name: str, device: torch.device) -> Tensor | None:
        """Returns the tensor as last put, on a device; `None` while it is zero.

        Kept in memory on that device it is the tensor itself.
        """
        step = self.step + (name in self._put)
        if not step:
            return None
        return self._read(name, step).to(device) if self.offload == "disk" else self._view(name).to(device)

    def put(self, name: str, tensor: Tensor) -> None:
        """Keeps a tensor for the next step."""
        self._put.add(name)
        if self.offload == "disk":
            self._write(name, tensor.detach().to(self.dtype).cpu())
        else:
            view = self._view(name)
            if view.data_ptr() != tensor.data_ptr():  # else it was changed in place
                view.copy_(tensor)

    def place(self, name: str, device: torch.device) -> Tensor:
        """Returns where the tensor is kept or, if that is elsewhere, a place for it on the device; zero at first."""
        found = self.get(name, device)
        if found is not None:
            return found
        elsewhere = self.offload == "disk" or self._devices[name] != device
        return torch.zeros(self.shapes[name], dtype=self.dtype, device=device) if elsewhere else self._view(name)

    def _view(self, name: str) -> Tensor:
        if not self._memory:
            for device in dict.fromkeys(self._devices.values()):
                here = {other: self.shapes[other] for other, place in self._devices.items() if place == device}
                sizes = [shape.numel() for shape in here.values()]
                parts = torch.zeros(sum(sizes), dtype=self.dtype, device=device).split(sizes)
                self._memory |= {other: part.view(here[other]) for other, part in zip(here, parts, strict=True)}
        return self._memory[name]

    def commit(self) -> None:
        """Ends a step; with a folder, the step is on disk before this returns."""
        self.step += 1
        self._put.clear()
        if self.folder is None:
            return
        file = self.folder / _FILES[self.step % 2]
        if self.offload != "disk":
            write_tensors(file, {name: self._view(name).cpu().contiguous() for name in self.shapes})
        if self.run:  # otherwise a folder that nobody goes on from
            _flush(file)
            write_json(self.folder / _STEP, {"step": self.step, "run": self.run, "scales": self.scales})
            _flush(self.folder)

    def reset(self) -> None:
        """Zero again, as before the first step, in the same place; for a run whose steps are not kept."""
        self.step = 0
        self.scales.clear()
        self._put.clear()
        for view in self._memory.values():
            view.zero_()

    def _check_usable(self, folder: Path) -> None:
        """Refuses, before any step, a folder that is another's or cannot hold the state."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with partial_file(folder, _STEP):  # whether it can be written
                pass
            names = [path.name for path in folder.iterdir() if not path.name.startswith((".", LAYERS))]
            strangers = [name for name in names if name not in (*_FILES, _STEP, f"{_STEP}.partial")]
            there = sum((folder / name).stat().st_size for name in _FILES if (folder / name).is_file())
            missing = 2 * self._bytes - there
            room = shutil.disk_usage(folder).free
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error.strerror}); give another folder") from error
        if strangers:
            raise CheckpointError(f"{folder}: is not a checkpoint folder ({strangers[0]} is in it); give an empty one")
        if room < missing:
            raise CheckpointError(
                f"{folder}: no room for δ, which is kept twice ({missing:,} bytes, {room:,} are free); give a folder"
                " elsewhere (--checkpoint-dir, or the environment's TMPDIR)"
            )

    def _resume(self, folder: Path) -> None:
        marker = folder / _STEP
        if not marker.is_file():
            return
        what = "the record of a Moreau step (remove the folder to start anew)"
        marked = filled(_Marker, read_json(marker, what), marker, what)
        if marked.step < 1 or (marked.scales and marked.scales.keys() != self.shapes.keys()):
            raise CheckpointError(
                f"{marker}: cannot be read as {what}: step {marked.step} of {len(marked.scales)} matrices"
            )
        if marked.run != self.run:
            raise CheckpointError(
                f"{folder}: holds the state of another run (model, text or settings differ); give another folder"
            )
        self.step, self.scales = marked.step, dict(marked.scales)
        file = folder / _FILES[self.step % 2]
        try:
            if self.offload == "disk":
                whole = file.stat().st_size == self._bytes
            else:
                found, _ = read_tensors(file, "the state of a Moreau step")
                whole = found.keys() == self.shapes.keys() and all(
                    tensor.shape == self.shapes[name] and tensor.dtype == self.dtype for name, tensor in found.items()
                )
                for name, tensor in found.items() if whole else ():
                    self._view(name).copy_(tensor)
        except (OSError, CheckpointError):
            whole = False
        if not whole:
            raise CheckpointError(f"{file}: is missing or damaged; remove the folder to start anew")

    def _map(self, name: str, step: int, mode: str) -> np.memmap:
        assert self.folder is not None  # offload is disk
        file = self.folder / _FILES[step % 2]
        if mode == "r+" and (not file.is_file() or file.stat().st_size != self._bytes):
            self._make(file)
        item = self.dtype.itemsize
        length = self.shapes[name].numel() * item
        return np.memmap(file, dtype=np.uint8, mode=mode, offset=self._starts[name] * item, shape=(length,))  # type: ignore[call-overload]

    def _make(self, file: Path) -> None:
        with file.open("wb") as opened:
            if not hasattr(os, "posix_fallocate"):  # macOS
                opened.truncate(self._bytes)
                return
            try:  # room for all of it now: a map that finds the disk full later kills the process
                os.posix_fallocate(opened.fileno(), 0, self._bytes)
            except OSError as error:
                raise CheckpointError(
                    f"{file}: no room for {self._bytes:,} bytes of δ ({error.strerror}); give a folder elsewhere"
                    " (--checkpoint-dir, or the environment's TMPDIR)"
                ) from error

    def _read(self, name: str, step: int) -> Tensor:
        mapped = self._map(name, step, "r")
        return torch.from_numpy(np.array(mapped)).view(self.dtype).view(self.shapes[name])

    def _write(self, name: str, tensor: Tensor) -> None:
        mapped = self._map(name, self.step + 1, "r+")
        mapped[:] = tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _flush(path: Path) -> None:
    """Puts a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
