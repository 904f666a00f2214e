"""Name → object, with "did you mean" for a name that is not there.

The objects are named by `module:attribute` and imported when they are first asked for, so that knowing the names (in
`--help`, in the validation of a config) costs no import of torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from .errors import ConfigError


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the known name nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


class Registry:
    """A table of named objects of one kind.

    Args:
        kind: what the objects are, for messages ("criterion").
        entries: name → `module:attribute`, or the object itself.

    Attributes:
        modules: the attribute of each object that was named so → its module.
    """

    def __init__(self, kind: str, entries: dict[str, Any]):
        self.kind = kind
        self._entries = dict(entries)
        places = (entry.split(":") for entry in entries.values() if isinstance(entry, str))
        self.modules = {attribute: module for module, attribute in places}

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def check(self, name: str) -> None:
        """Raises ConfigError, with the nearest name and all names, unless `name` is registered."""
        if not isinstance(name, str) or name not in self._entries:
            hint = suggestion(name, self._entries)
            raise ConfigError(f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(self._entries)}")

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
        "moreau-gs": f"{_CRITERIA}.moreau:MoreauGS",
        "moreau": f"{_CRITERIA}.moreau:Moreau",
        "smoothgrad": f"{_CRITERIA}.smoothgrad:SmoothGrad",
        "taylor": f"{_CRITERIA}.taylor:Taylor",
        "taylor-second": f"{_CRITERIA}.taylor:TaylorSecond",
        "taylor-mixed": f"{_CRITERIA}.taylor:TaylorMixed",
        "taylor-vector": f"{_CRITERIA}.taylor:TaylorVector",
        "lora": f"{_CRITERIA}.lora:LoRA",
        "magnitude": f"{_CRITERIA}.magnitude:Magnitude",
        "magnitude-l2": f"{_CRITERIA}.magnitude:MagnitudeL2",
        "surgeon": f"{_CRITERIA}.surgeon:Surgeon",
        "wanda": f"{_CRITERIA}.wanda:Wanda",
        "symwanda": f"{_CRITERIA}.wanda:SymWanda",
        "symwanda-relative": f"{_CRITERIA}.wanda:SymWandaRelative",
        "ria": f"{_CRITERIA}.ria:RIA",
        "stochria": f"{_CRITERIA}.ria:StochRIA",
        "sparsegpt": f"{_CRITERIA}.sparsegpt:SparseGPT",
        "gblm": f"{_CRITERIA}.gblm:GBLM",
        "gblm-l1": f"{_CRITERIA}.gblm:GBLML1",
        "gblm-gradient": f"{_CRITERIA}.gblm:GBLMGradient",
        "gblm-gradient-l1": f"{_CRITERIA}.gblm:GBLMGradientL1",
        "random": f"{_CRITERIA}.random:Random",
    },
)

_BUDGETS = "optimum_moreau.budgets"
BUDGETS = Registry(
    "budget",
    {
        "uniform": f"{_BUDGETS}.uniform:Uniform",
        "global": f"{_BUDGETS}.overall:Global",
        "cosine": f"{_BUDGETS}.cosine:Cosine",
        "owl": f"{_BUDGETS}.owl:OWL",
        "zscore": f"{_BUDGETS}.zscore:ZScore",
        "sensitivity": f"{_BUDGETS}.sensitivity:Sensitivity",
        "search": f"{_BUDGETS}.search:Search",
    },
)

_COMPENSATIONS = "optimum_moreau.compensation"
COMPENSATIONS = Registry(
    "compensation",
    {
        "none": f"{_COMPENSATIONS}.none:NoCompensation",
        "refit": f"{_COMPENSATIONS}.refit:Refit",
        "train": f"{_COMPENSATIONS}.train:Train",
        "scale": f"{_COMPENSATIONS}.scale:Scale",
        "bias": f"{_COMPENSATIONS}.bias:Bias",
    },
)

# Field of the config → the methods that it names.
METHODS = {"criterion": CRITERIA, "budget": BUDGETS, "compensation": COMPENSATIONS}
