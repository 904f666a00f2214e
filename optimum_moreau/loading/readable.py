"""Whether a model's files can be read at all, before a library stumbles: in a folder, or in the Hub's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers.utils import find_adapter_config_file
from transformers.utils.hub import resolve_revision

from ..errors import CheckpointError, quiet
from ..files import LARGEST_OF_TRANSFORMERS, MAX_JSON_BYTES, read_json, read_shapes, read_text

WEIGHTS_INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
_TOKENIZER = "tokenizer.json"
_VOCABULARIES = (_TOKENIZER, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# Files that transformers reads; each is a JSON dictionary.
OF_MODEL = {
    CONFIG: "a model's config",
    "generation_config.json": "settings of generation",
    WEIGHTS_INDEX: "an index of weights",
}
OF_TOKENIZER = {
    "tokenizer_config.json": "a tokenizer's config",
    "special_tokens_map.json": "a map of special tokens",
    "added_tokens.json": "a list of added tokens",
}
_TEMPLATE = "chat_template.jinja"
_LONGEST_TEMPLATE = 2**20  # bytes
_GGUF = "for llama.cpp; prune the safetensors model it was made from"
_ADVICE = "get the file anew, or repair it"


def pinned(name: str, revision: str | None) -> str | None:
    """The revision of a Hub model with the commit that it stands for, so that what is checked is what is loaded.

    For a folder, and where neither the Hub nor its cache knows, the revision as it is given.
    """
    if Path(name).expanduser().is_dir():
        return revision
    with quiet("huggingface_hub"):
        found: str | None = resolve_revision(name, revision)
    return found


def local_folder(name: str, revision: str | None) -> Path | None:
    """Where a model's files lie here: its folder, or that of a `pinned` commit in the Hub's cache; nothing is asked."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    commit = getattr(revision, "resolved", revision)
    with suppress(HFValidationError, OSError):  # a name that cannot be on the Hub
        for file in (CONFIG, _TOKENIZER, *OF_TOKENIZER):
            if isinstance(found := try_to_load_from_cache(name, file, revision=commit), str):
                return Path(found).parent
    return None


def other_kind(path: Path) -> str:
    """What a path holds in a model's place (an adapter, GGUF files), and the way out; empty where it may be a model."""
    if path.suffix == ".gguf" and path.is_file():
        return f"is a GGUF file, {_GGUF}"
    if not path.is_dir() or (path / CONFIG).is_file():
        return ""
    if (path / ADAPTER).is_file():
        values = read_json(path / ADAPTER, "an adapter's config", largest=LARGEST_OF_TRANSFORMERS)
        values = values if isinstance(values, dict) else {}
        kind = "LoRA" if values.get("peft_type") == "LORA" else "PEFT"
        advice = "peft: AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload()"
        base = f"{values.get('base_model_name_or_path')!r:.120}"
        return f"is a {kind} adapter of {base}; merge it first ({advice}), then prune the merged folder"
    return f"holds GGUF files only, {_GGUF}" if any(path.glob("*.gguf")) else ""


def kind_on_hub(name: str, revision: str | None) -> str:
    """What a repository of the Hub without a config.json is; empty where the Hub does not know it."""
    if getattr(revision, "resolved", None) is None:
        return ""
    try:
        if (file := find_adapter_config_file(name, revision=revision)) is not None:
            return other_kind(Path(file).parent)
        files = HfApi().list_repo_files(name, revision=revision)
    except OSError:
        return ""
    return f"holds GGUF files only, {_GGUF}" if any(file.endswith(".gguf") for file in files) else ""


def check_vocabulary_there(name: str, folder: Path | None) -> None:
    """Raises CheckpointError, which says how to get one, for a folder without a tokenizer."""
    if folder is not None and not any((folder / file).is_file() for file in _VOCABULARIES):
        raise CheckpointError(
            f"{name}: has no tokenizer ({', '.join(_VOCABULARIES[:3])}, …): text cannot be read; copy the tokenizer"
            " files of the model that it was made from"
        )


def check_model_files(folder: Path | None) -> None:
    """Raises CheckpointError, naming it, for a small file of a model that is damaged; what is not there may be so."""
    if folder is not None:
        _check_dictionaries(folder, OF_MODEL | OF_TOKENIZER)
        weight_files(folder)


def check_tokenizer_files(folder: Path | None, *, whole: bool = False) -> None:
    """Refuses damaged files of a tokenizer; tokenizer.json only if `whole`: that takes half as long as its load."""
    if folder is None:
        return
    _check_dictionaries(folder, OF_TOKENIZER)
    if (template := folder / _TEMPLATE).is_file():
        with _advised():
            read_text(template, "a chat template", most=_LONGEST_TEMPLATE)
    vocabulary = folder / _TOKENIZER
    if vocabulary.is_file() and vocabulary.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{vocabulary}: cannot be read as a tokenizer: more than {MAX_JSON_BYTES // 2**20} MiB")
    if whole:
        _check_dictionaries(folder, {_TOKENIZER: "a tokenizer"})


def _check_dictionaries(folder: Path, names: Mapping[str, str]) -> None:
    for file, what in ((folder / name, what) for name, what in names.items() if (folder / name).is_file()):
        with _advised():
            values = read_json(file, what, largest=LARGEST_OF_TRANSFORMERS)
            if not isinstance(values, dict):
                raise CheckpointError(f"{file}: cannot be read as {what}: {values!r:.40} is no dictionary")


@contextmanager
def _advised() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_ADVICE}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files of a local model's weights, by its index where it has one; raises CheckpointError for a damaged one."""
    index, what = folder / WEIGHTS_INDEX, OF_MODEL[WEIGHTS_INDEX]
    if not index.is_file():
        return [folder / "model.safetensors"]
    values = read_json(index, what)
    found = values.get("weight_map") if isinstance(values, dict) else None
    names = list(found.values()) if isinstance(found, dict) else []
    if not names or any(type(n) is not str or Path(n).name != n or not n.endswith(".safetensors") for n in names):
        words = "weight_map must name a safetensors file for each weight"
        raise CheckpointError(f"{index}: cannot be read as {what}: {words}")
    return [folder / name for name in sorted(set(names))]


def are_whole(files: Iterable[Path]) -> bool:
    """Whether safetensors files are there, and as long as their heads say."""
    return not damage_of(files)


def damage_of(files: Iterable[Path]) -> str:
    """What is wrong with the first of safetensors files that is not there, or not as long as its head says."""
    for file in files:
        try:
            read_shapes(file, "weights")
        except CheckpointError as error:
            return f"{error}; {_ADVICE}"
    return ""
