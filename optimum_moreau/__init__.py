"""Structured pruning of LLaMA-family language models by the gradient of the loss's Moreau envelope."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .modeling import register_when_transformers_is_imported
from .registry import METHODS

if TYPE_CHECKING:
    from .config import Mask, MoreauPrunerConfig
    from .config.recovery import RecoveryConfig
    from .data.windows import CalibrationSet, load_calibration
    from .errors import MoreauError
    from .estimate import Estimate, estimate_pruning
    from .evaluation import perplexity
    from .evaluation.metric import Perplexity
    from .pipeline.recipe import Recipe
    from .planning import PruningPlan
    from .pruner import MoreauPruner, PruningResult
    from .recovery import MoreauRecovery, RecoverySummary, recover
    from .run.again import plan_again
    from .saving.hub import Published, push_folder, push_to_hub
    from .surgery.apply import apply_plan

__version__ = "0.1.0"

# Public name → its module, imported on first use: `import optimum_moreau` itself needs no torch.
_PUBLIC = {
    "MoreauPruner": ".pruner",
    "PruningResult": ".pruner",
    "MoreauPrunerConfig": ".config",
    "Mask": ".config",
    "Recipe": ".pipeline.recipe",
    "PruningPlan": ".planning",
    "Published": ".saving.hub",
    "push_folder": ".saving.hub",
    "push_to_hub": ".saving.hub",
    "Estimate": ".estimate",
    "estimate_pruning": ".estimate",
    "apply_plan": ".surgery.apply",
    "plan_again": ".run.again",
    "MoreauRecovery": ".recovery",
    "RecoveryConfig": ".recovery",
    "RecoverySummary": ".recovery",
    "recover": ".recovery",
    "CalibrationSet": ".data.windows",
    "load_calibration": ".data.windows",
    "Perplexity": ".evaluation.metric",
    "perplexity": ".evaluation",
    "MoreauError": ".errors",
    # the classes of all criteria, budgets and compensations
    **{name: module for registry in METHODS.values() for name, module in registry.modules.items()},
}
__all__ = [*_PUBLIC]

register_when_transformers_is_imported()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
