"""The own model types, and how transformers' Auto classes and peft come to know them.

`import optimum_moreau` stays light, yet AutoConfig and AutoModel* know the own types once both packages are imported,
in either order: where transformers' auto classes are imported already, the types are registered at once; otherwise when
the outermost import of a transformers module that brings them in has finished (a nested one would find transformers
half imported). peft looks up by model type which layers an adapter goes on; its tables are extended likewise.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from ..models.families import FAMILIES

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"
_PEFT_TABLES = "peft.utils.constants"
_registered = threading.Event()


def register_auto_classes() -> None:
    """Makes the own model types known to AutoConfig, AutoModel and AutoModelForCausalLM."""
    if _registered.is_set():
        return
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from . import modeling_moreau

    for model_type, (config, decoder, causal_lm) in modeling_moreau.OWN_TYPES.items():
        AutoConfig.register(model_type, config, exist_ok=True)
        AutoModel.register(config, decoder, exist_ok=True)
        AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
    _registered.set()


def auto_map(model_type: str) -> dict[str, str]:
    """Returns config.json's `auto_map` for an own type, for loading where this package is not installed."""
    from .modeling_moreau import OWN_TYPES

    classes = dict(zip(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), OWN_TYPES[model_type], strict=True))
    return {auto: f"modeling_moreau.{made.__name__}" for auto, made in classes.items()}


def tell_peft() -> None:
    """Gives the own types, in each of peft's tables by model type, the entry of the family they extend, if any."""
    from peft.utils import constants

    tables = [table for name, table in vars(constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")]
    for family in FAMILIES.values():
        for table in tables:
            if family.base_type in table:
                table.setdefault(family.custom_type, table[family.base_type])


class _After:
    """An import hook that calls a function once a module is imported, and the outermost import around it is over."""

    def __init__(self, module: str, around: str, call: Callable[[], None]) -> None:
        self.module, self.around, self.call = module, around, call
        self.nesting = threading.local()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name.startswith(self.around) else None
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.nesting.depth = getattr(self.nesting, "depth", 0) + 1
            try:
                execute(module)
            finally:
                self.nesting.depth -= 1
            if self.nesting.depth == 0 and self.module in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                self.call()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_when_transformers_is_imported() -> None:
    """Registers the own types now, or as soon as transformers' auto classes, and peft's tables, are imported."""
    for module, around, call in (
        (_PEFT_TABLES, _PEFT_TABLES, tell_peft),
        (_AUTO_CONFIG, "transformers.", register_auto_classes),
    ):
        if module in sys.modules:
            call()
        else:
            sys.meta_path.insert(0, _After(module, around, call))
