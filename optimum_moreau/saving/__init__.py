"""What is written: the folder, all or nothing and verified by a reload; its records and card; the Hub."""

from .beside import carry_over
from .older_readers import spell_for_older_readers
from .outputs import check_addable, check_apart, check_file, check_folder, check_target, claimed, work_folder
from .saving import add_files, save_folder
from .verification import Verification, reload_logits, verify

__all__ = [
    "Verification",
    "add_files",
    "carry_over",
    "check_addable",
    "check_apart",
    "check_file",
    "check_folder",
    "check_target",
    "claimed",
    "reload_logits",
    "save_folder",
    "spell_for_older_readers",
    "verify",
    "work_folder",
]
