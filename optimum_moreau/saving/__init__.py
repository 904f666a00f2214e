"""What is written: the folder, all or nothing and verified by a reload; its records and card; the Hub."""

from .outputs import check_addable, check_apart, check_file, check_folder, check_target, work_folder
from .saving import add_files, claimed, save_folder

__all__ = [
    "add_files",
    "check_addable",
    "check_apart",
    "check_file",
    "check_folder",
    "check_target",
    "claimed",
    "save_folder",
    "work_folder",
]
