"""What may lie in the folder of a model: by which one is recognised that may be replaced; what goes along from a base.

Beside a base model's weights, that is its tokenizer's own files and its licence. Nothing else does: no code, no
weights, nothing that a link brings in from elsewhere, nothing that is large.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

from ..errors import CheckpointError, quiet
from ..files import LARGEST_OF_TRANSFORMERS, read_json
from ..files.temporary import is_partial

logger = logging.getLogger(__name__)

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
# sentencepiece, tiktoken and byte-pair files that runtimes read and transformers does not write again
_OF_TOKENIZER = re.compile(
    r"tokenizer\.model(\.v\d+)?|spiece\.model|sentencepiece\.bpe\.model|[\w.-]+\.tiktoken|tekken\.json"
    r"|vocab\.(json|txt)|merges\.txt"
)
_LICENCE = re.compile(
    r"(licen[cs]es?|notices?|copying|copyright|use[_-]policy|acceptable[_-]use([_-]policy)?)([ ._-][\w .-]*)?",
    re.IGNORECASE,
)
_LICENCE_ENDINGS = ("", ".txt", ".md", ".rst", ".pdf")
_MOST_BYTES = {_OF_TOKENIZER: 64 * 2**20, _LICENCE: 2**20}
_MOST_FILES = 32
_SECONDS = 5.0  # that a Hub may take to answer


def is_model(folder: Path) -> bool:
    """Whether a folder holds a config that names a type, and weights or records of this package."""
    try:
        config = read_json(folder / "config.json", "a config")
    except CheckpointError:
        return False
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        return False
    return any(_matches(path.name, (*WEIGHTS, *RECORDS, "*.safetensors")) for path in folder.iterdir())


def strangers(top: Path, inside: str = "") -> list[str]:
    """What lies in a folder and is not part of a model; a folder by its own name, what killed runs left not at all."""
    found: list[str] = []
    for path in (top / inside).iterdir():
        name = f"{inside}/{path.name}" if inside else path.name
        if is_partial(path.name) or name in _WHOLE or is_of_a_run(top, name):
            continue
        if path.is_dir() and not path.is_symlink():
            found += strangers(top, name) if name in CONTENTS else [name]
        elif not (_matches(path.name, CONTENTS[inside]) or (not inside and goes_along(path.name))):
            found.append(name)
    return sorted(found)


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


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def carry_over(folder: Path, base: str | None, *, tokenizer: str | None = None, revision: str | None = None) -> None:
    """In place: copies what belongs to tokenizer and licence into a saved folder; what is there already stays.

    Args:
        folder: that was saved.
        base: folder or Hub id of the model that it was made of; of a Hub id what is in the cache, and, where the Hub
            answers, the licence.
        tokenizer: folder or Hub id of the tokenizer; its files go along if its vocabulary is still the same.
        revision: of the base on the Hub.
    """
    files = [*_beside(base, revision, _LICENCE)]
    if (folder / "tokenizer_config.json").is_file():
        of_tokenizer = _beside(tokenizer, revision if tokenizer == base else None, _OF_TOKENIZER)
        ours = folder / "tokenizer.json"
        files += [file for file in of_tokenizer if _same_vocabulary(file.parent / "tokenizer.json", ours)]
    for file in files:
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _beside(name: str | None, revision: str | None, pattern: re.Pattern[str]) -> Iterator[Path]:
    """The files of a folder or of a Hub id that match, in order."""
    if not name:
        return
    source = Path(name).expanduser()
    if not source.is_dir():
        try:
            cached = try_to_load_from_cache(name, "config.json", revision=revision)
        except ValueError:  # no id
            return
        if not isinstance(cached, str):  # it was not loaded from the Hub
            return
        source = Path(cached).parent
        if pattern is _LICENCE:
            _fetch_licence(name, source.name)
    names = sorted(path.name for path in source.iterdir() if _belongs(path.name, pattern))
    for name in names[:_MOST_FILES]:
        if _may_go_along(source / name, source, _MOST_BYTES[pattern]):
            yield source / name


def goes_along(name: str) -> bool:
    """Whether a file of this name is carried over from a base: a licence, or one of the tokenizer's."""
    return _belongs(name, _LICENCE) or _belongs(name, _OF_TOKENIZER)


def _belongs(name: str, pattern: re.Pattern[str]) -> bool:
    return bool(pattern.fullmatch(name)) and (pattern is _OF_TOKENIZER or Path(name).suffix.lower() in _LICENCE_ENDINGS)


def _may_go_along(file: Path, source: Path, most: int) -> bool:
    """A plain file of the folder; in the Hub's cache the folder holds links into that of its repository."""
    home = source.resolve()
    home = home.parent.parent if home.parent.name == "snapshots" else home
    return file.is_file() and file.resolve().is_relative_to(home) and file.stat().st_size <= most


def _fetch_licence(name: str, revision: str | None) -> None:
    """Brings the licence of a Hub model into the cache: transformers loads weights without it."""
    try:
        with quiet("huggingface_hub"):
            info = HfApi().model_info(name, revision=revision, timeout=_SECONDS, files_metadata=True)
            for one in info.siblings or ():
                small = one.size is not None and one.size <= _MOST_BYTES[_LICENCE]
                if small and _belongs(one.rfilename, _LICENCE):
                    hf_hub_download(name, one.rfilename, revision=revision, etag_timeout=_SECONDS)
    except (OSError, ValueError, httpx2.HTTPError) as error:  # no network, or not there any more
        logger.info("%s: its licence files are not fetched (%s)", name, type(error).__name__)


def _same_vocabulary(first: Path, second: Path) -> bool:
    """Whether two tokenizers, as far as both are written down, have the same tokens."""
    if not first.is_file() or not second.is_file():
        return True
    try:
        return _tokens(first) == _tokens(second)
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return False


def _tokens(tokenizer: Path) -> tuple[Any, Any]:
    values = read_json(tokenizer, "a tokenizer", largest=LARGEST_OF_TRANSFORMERS)
    return values["model"]["vocab"], [(one["id"], one["content"]) for one in values["added_tokens"]]
