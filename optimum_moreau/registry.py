"""Name → object, with "did you mean" for a name that is not there.

The objects are named by `module:attribute` and imported when they are first asked for, so that knowing the names (in
`--help`, in the validation of a config) costs no import of torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the known name nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


class Registry:
    """A table of named objects of one kind.

    Args:
        kind: what the objects are, for messages ("criterion").
        entries: name → `module:attribute`, or the object itself.
    """

    def __init__(self, kind: str, entries: dict[str, Any]):
        self.kind = kind
        self._entries = dict(entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def check(self, name: str) -> None:
        """Raises ValueError, with the nearest name and all names, unless `name` is registered."""
        if not isinstance(name, str) or name not in self._entries:
            hint = suggestion(name, self._entries)
            raise ValueError(f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(self._entries)}")

    def get(self, name: str) -> Any:
        """Returns the object registered under `name`; imports it where it is not imported yet."""
        self.check(name)
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            entry = self._entries[name] = getattr(import_module(module), attribute)
        return entry

    def register(self, name: str, entry: Any) -> None:
        """Adds `entry` (an object or its `module:attribute`) under a name that is not taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered already")
        self._entries[name] = entry


_CRITERIA = "optimum_moreau.criteria"
CRITERIA = Registry(
    "criterion",
    {
        "moreau-gs": f"{_CRITERIA}.moreau:MOREAU_GS",
        "moreau": f"{_CRITERIA}.moreau:MOREAU",
        "smoothgrad": f"{_CRITERIA}.smoothgrad:SMOOTHGRAD",
        "taylor": f"{_CRITERIA}.taylor:TAYLOR",
        "taylor-second": f"{_CRITERIA}.taylor:TAYLOR_SECOND",
        "taylor-mixed": f"{_CRITERIA}.taylor:TAYLOR_MIXED",
        "taylor-vector": f"{_CRITERIA}.taylor:TAYLOR_VECTOR",
        "lora": f"{_CRITERIA}.lora:LORA",
        "magnitude": f"{_CRITERIA}.magnitude:MAGNITUDE",
        "magnitude-l2": f"{_CRITERIA}.magnitude:MAGNITUDE_L2",
        "wanda": f"{_CRITERIA}.wanda:WANDA",
        "symwanda": f"{_CRITERIA}.wanda:SYMWANDA",
        "symwanda-relative": f"{_CRITERIA}.wanda:SYMWANDA_RELATIVE",
        "ria": f"{_CRITERIA}.relative:RIA",
        "stochria": f"{_CRITERIA}.relative:STOCHRIA",
        "sparsegpt": f"{_CRITERIA}.sparsegpt:SPARSEGPT",
        "gblm": f"{_CRITERIA}.gblm:GBLM",
        "gblm-l1": f"{_CRITERIA}.gblm:GBLM_L1",
        "gblm-gradient": f"{_CRITERIA}.gblm:GBLM_GRADIENT",
        "gblm-gradient-l1": f"{_CRITERIA}.gblm:GBLM_GRADIENT_L1",
        "random": f"{_CRITERIA}.random:RANDOM",
    },
)

_COMPENSATION = "optimum_moreau.compensation.steps"
COMPENSATIONS = Registry(
    "compensation",
    {
        "none": f"{_COMPENSATION}:NONE",
        "refit": f"{_COMPENSATION}:REFIT",
        "scale": f"{_COMPENSATION}:SCALE",
        "bias": f"{_COMPENSATION}:BIAS",
    },
)
