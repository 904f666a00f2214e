"""Checkpoints: load a model, save it all or nothing, verify it by reloading."""

from .beside import carry_over
from .loading import (
    base_revision,
    check_device,
    check_same_tokenizer,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
)
from .older_readers import spell_for_older_readers
from .outputs import check_addable, check_apart, check_file, check_folder, check_target, claimed, work_folder
from .readable import are_whole, weight_files
from .saving import add_files, save_folder
from .trust import code_may_run, drop_foreign_code
from .verification import Verification, reload_logits, verify

__all__ = [
    "Verification",
    "add_files",
    "are_whole",
    "base_revision",
    "carry_over",
    "check_addable",
    "check_apart",
    "check_device",
    "check_file",
    "check_folder",
    "check_same_tokenizer",
    "check_target",
    "claimed",
    "code_may_run",
    "drop_foreign_code",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "reload_logits",
    "save_folder",
    "spell_for_older_readers",
    "verify",
    "weight_files",
    "work_folder",
]
