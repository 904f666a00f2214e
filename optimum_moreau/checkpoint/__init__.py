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
from .saving import add_files, check_addable, check_file, check_target, save_folder
from .verification import Verification, reload_logits, verify

__all__ = [
    "Verification",
    "add_files",
    "base_revision",
    "carry_over",
    "check_addable",
    "check_device",
    "check_file",
    "check_same_tokenizer",
    "check_target",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "reload_logits",
    "save_folder",
    "spell_for_older_readers",
    "verify",
]
