"""What may lie in the folder of a model: by which one is recognised that may be replaced."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import CheckpointError
from ..files import read_json
from ..files.temporary import is_partial
from .beside import goes_along

# vLLM takes every *.safetensors at the top for weights: none but these may lie there.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
RECORDS = (
    "pruning_plan.json",
    "pruning_summary.json",
    "moreau_pruner_config.json",
    "evaluation.json",
    "benchmark.json",
    "sparsity_summary.json",
    "recovery_summary.json",
)
# Of a tokenizer, beside what `goes_along`.
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PROCESSOR = ("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json")
_CODE = ("modeling_*.py", "configuration_*.py", "tokenization_*.py")
_SCORES = "pruning_scores.safetensors"  # in `pruning/`; older versions put them at the top
_OF_OTHERS = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json", ".gitattributes")
_PLAIN = ("config.json", "generation_config.json", "README.md", _SCORES)
# folder → names of the files in it
CONTENTS = {
    "": (*_PLAIN, *WEIGHTS, *RECORDS, *_TOKENIZER, *_PROCESSOR, *_CODE, *_OF_OTHERS),
    "pruning": (_SCORES,),
    "adapter": ("adapter_model.safetensors", "adapter_config.json", "README.md"),
    "additional_chat_templates": ("*.jinja",),
    "__pycache__": ("*.pyc",),
    ".cache": (),
}
# What only a push of this package sends, among what may lie on the Hub.
_ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
_OURS = (*WEIGHTS, *RECORDS, _SCORES, f"pruning/{_SCORES}", "modeling_moreau.py", *_ADAPTER)
_WHOLE = (".cache/huggingface",)  # what a download into a folder leaves there


def check_replaceable(name: str | Path, folder: Path, passed_over: Collection[str] = ()) -> None:
    """Refuses to replace a folder that is not a saved model and nothing else.

    Args:
        name: of the folder, for messages.
        folder: its full path.
        passed_over: what else may lie in it, and stays.

    Raises:
        CheckpointError: it holds no model, or something that is not part of one; named.
    """
    if not is_model(folder):
        raise CheckpointError(
            f"{name}: holds no saved model (config.json with a model type, and weights); only those are overwritten"
        )
    if odd := [one for one in strangers(folder) if one not in passed_over]:
        raise CheckpointError(
            f"{name}: holds {odd[0]}, which is not part of a model: move it, or choose another folder"
        )


def is_model(folder: Path) -> bool:
    """Whether a folder holds a config that names a type, and weights or records of this package."""
    try:
        config = read_json(folder / "config.json", "a config")
    except CheckpointError:
        return False
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        return False
    return any(_matches(path.name, (*WEIGHTS, *RECORDS, "*.safetensors")) for path in folder.iterdir())


def strangers(folder: Path) -> list[str]:
    """What lies in a folder and is not part of a model; a folder by its own name, what killed runs left not at all."""
    return sorted(_strangers(folder, ""))


def is_of_a_run(folder: Path, name: str) -> bool:
    """Whether something at the top of a folder belongs to a run that writes the folder, and not to what it holds."""
    kind = name.removeprefix(f".{folder.name}.") if name.startswith(f".{folder.name}.") else ""
    return kind in ("lock", "recovery") or kind.startswith(("partial-", "complete-", "moving-", "recovery-"))


def is_ours(name: str) -> bool:
    """Whether a push sends a file of this path: weights, adapter, modeling file, records."""
    return _matches(name, _OURS)


def is_part(path: Path) -> bool:
    """Whether something at the top of a folder is of a kind that a model's folder holds."""
    if path.is_dir() and not path.is_symlink():
        return path.name in CONTENTS
    return _matches(path.name, CONTENTS[""]) or goes_along(path.name)


def _strangers(top: Path, inside: str) -> list[str]:
    found: list[str] = []
    for path in (top / inside).iterdir():
        name = f"{inside}/{path.name}" if inside else path.name
        if is_partial(path.name) or name in _WHOLE or is_of_a_run(top, name):
            continue
        if path.is_dir() and not path.is_symlink():
            found += _strangers(top, name) if name in CONTENTS else [name]
        elif not (_matches(path.name, CONTENTS[inside]) or (not inside and goes_along(path.name))):
            found.append(name)
    return found


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
