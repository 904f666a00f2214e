"""Recovery of a pruned model: LoRA on the Trainer, and the merge."""

from ..config.recovery import RecoveryConfig
from .recovery import MoreauRecovery, RecoverySummary, check_fits, recover

__all__ = ["MoreauRecovery", "RecoveryConfig", "RecoverySummary", "check_fits", "recover"]
