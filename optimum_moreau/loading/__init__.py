"""Loads models: within bounds, and without code that the user did not allow."""

from .loading import base_revision, check_same_tokenizer, load_config, load_model, load_skeleton, load_tokenizer
from .readable import are_whole, weight_files
from .trust import code_may_run, drop_foreign_code

__all__ = [
    "are_whole",
    "base_revision",
    "check_same_tokenizer",
    "code_may_run",
    "drop_foreign_code",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "weight_files",
]
