"""Layers that were adjusted, kept on disk one by one, so that a run that was killed goes on behind the last of them.

A folder's name holds what its layers were made from, so that what another run left is no obstacle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..envelope.state import LAYERS
from ..files import filled, parse_json, read_tensors, write_tensors
from ..models.placement import loaded, parameter_names, put
from .done import Done

_WHAT = "an adjusted layer (remove the folder to start anew)"


class KeptLayers:
    """The layers of one run.

    Args:
        folder: that holds them, among those of other runs; `None`: nothing is kept.
        made_from: everything that decides what they become, as JSON can hold it.
    """

    def __init__(self, folder: Path | None = None, **made_from: Any):
        run = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        self._parent, self._made_from = folder, made_from
        self._folder = None if folder is None else folder / f"{LAYERS}{run[:16]}"

    def by(self, **made_from: Any) -> KeptLayers:
        """The layers of the run with something more that decides, as the step is."""
        return KeptLayers(self._parent, **self._made_from, **made_from)

    def has(self, index: int) -> bool:
        """Whether a layer was kept."""
        return self._folder is not None and self._file(index).is_file()

    def again(self, index: int, layer: Any) -> Done:
        """In place: gives a layer what was kept of it.

        Raises:
            CheckpointError: it is damaged.
        """
        file = self._file(index)
        values, about = read_tensors(file, _WHAT)
        done = filled(Done, parse_json(about.get("done", ""), file, _WHAT), file, _WHAT)
        for path, value in values.items():
            owner, _, name = path.rpartition(".")
            module = layer.get_submodule(owner)
            put(module, value.to(loaded(module, name).device), name)
        return done

    def keep(self, index: int, layer: Any, names: Collection[str], done: Done) -> None:
        """Keeps some modules of a layer, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        modules = {name: layer.get_submodule(name) for name in names}
        values = {
            f"{path}.{name}": loaded(module, name).cpu().contiguous()
            for path, module in modules.items()
            for name in parameter_names(module)
        }
        write_tensors(self._file(index), values, {"done": json.dumps(asdict(done))})

    def _file(self, index: int) -> Path:
        assert self._folder is not None  # both callers looked
        return self._folder / f"{index:05}.safetensors"
