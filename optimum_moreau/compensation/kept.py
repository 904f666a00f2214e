"""Layers that were adjusted, kept on disk one by one, so that a run that was killed goes on behind the last of them.

A folder's name holds what its layers were made from, so that what another run left is no obstacle. Of the model's
weights that is a fingerprint, and the loss that it had on the windows held out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..envelope.state import LAYERS
from ..errors import CheckpointError
from ..files import filled, parse_json, read_tensors, write_tensors
from ..models.placement import loaded, parameter_names, put
from .done import Done

_WHAT = "an adjusted layer (remove its folder to start anew)"

logger = logging.getLogger(__name__)


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

    def say(self, depth: int) -> None:
        """Logs how many layers are there."""
        if there := sum(self.has(index) for index in range(depth)):
            logger.warning("%s: %d layers are there, and are not adjusted again", self._folder, there)

    def by(self, **made_from: Any) -> KeptLayers:
        """The layers of the run with something more that decides, as the step is."""
        return KeptLayers(self._parent, **self._made_from, **made_from)

    def has(self, index: int) -> bool:
        """Whether a layer was kept."""
        return self._folder is not None and self._file(index).is_file()

    def again(self, index: int, layer: Any, names: Collection[str]) -> Done:
        """In place: gives some modules of a layer what was kept of them.

        Raises:
            CheckpointError: it is damaged.
        """
        file = self._file(index)
        values, about = read_tensors(file, _WHAT)
        done = filled(Done, parse_json(about.get("done", ""), file, _WHAT), file, _WHAT)
        places = _parameters(layer, names)
        now = {path: loaded(*place) for path, place in places.items()}
        if {path: (one.shape, one.dtype) for path, one in now.items()} != {
            path: (one.shape, one.dtype) for path, one in values.items()
        }:
            raise CheckpointError(f"{file}: cannot be read as {_WHAT}: it holds other weights")
        for path, (module, name) in places.items():
            put(module, values[path].to(now[path].device), name)
        return done

    def keep(self, index: int, layer: Any, names: Collection[str], done: Done) -> None:
        """Keeps some modules of a layer, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self._folder}: cannot be made ({error.strerror}); give another folder") from error
        values = {path: loaded(*place).cpu().contiguous() for path, place in _parameters(layer, names).items()}
        write_tensors(self._file(index), values, {"done": json.dumps(asdict(done))})

    def _file(self, index: int) -> Path:
        assert self._folder is not None  # every caller looked
        return self._folder / f"{index:05}.safetensors"


def _parameters(layer: Any, names: Collection[str]) -> dict[str, tuple[Any, str]]:
    """The parameters of some modules of a layer, each by its path: its module, and its name there."""
    modules = {name: layer.get_submodule(name) for name in names}
    return {f"{path}.{own}": (one, own) for path, one in modules.items() for own in parameter_names(one)}
