"""Recovery of a pruned model: LoRA on the Trainer, and the merge."""

from .recovery import MoreauRecovery, RecoverySummary, check_fits, recover
from .settings import RecoveryConfig

__all__ = ["MoreauRecovery", "RecoveryConfig", "RecoverySummary", "check_fits", "recover"]
