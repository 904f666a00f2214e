"""Whose code may run. Nothing that is read from a file decides it: only the user's word, or a file known byte by byte.

A folder names code in `auto_map`, of config.json and others: of its own files, of another repository, of a path. The
file that travels with the own types is this package's, and compared with it; all else needs `trust_remote_code`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ..errors import CheckpointError
from ..files import LARGEST_OF_TRANSFORMERS, read_json, write_text
from ..modeling import auto_map, modeling_moreau
from .readable import ADAPTER

logger = logging.getLogger(__name__)

MODELING_FILE = Path(modeling_moreau.__file__)
_ONLY_TRUSTED = "runs only where you trust it (--trust-remote-code)"


def code_may_run(folder: str | Path, trust_remote_code: bool) -> bool:
    """Whether a load of a folder is to run code from it: the user trusts it, or it is what this package writes.

    It is not for a model of a stock type, whatever its files name.

    Raises:
        CheckpointError: the folder is of an own type, but its code is not this package's; or it holds an adapter, which
            a load would take along.
    """
    path = Path(folder).expanduser()
    check_no_adapter(path)
    if trust_remote_code:
        return True
    try:
        config = read_json(path / "config.json", "a model's config")
    except CheckpointError:  # the load will say so
        return False
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str) or model_type not in modeling_moreau.OWN_TYPES:
        return False
    advice = f"it {_ONLY_TRUSTED}"
    if config.get("auto_map") != auto_map(model_type):
        raise CheckpointError(f"config.json names code that is not this package's (auto_map); {advice}")
    if "configuration_files" in config or (versions := sorted(path.glob("config.*.json"))):
        name = "config.json (configuration_files)" if "configuration_files" in config else versions[0].name
        raise CheckpointError(f"{name} stands for another config, which may name other code; {advice}")
    if linked := next((link for link in path.rglob("*") if link.is_symlink() and link.is_dir()), None):
        raise CheckpointError(f"{linked.relative_to(path)} is a link to a folder, which may hold other code; {advice}")
    # any other file of code might be found by a load: custom_generate/generate.py is
    others = sorted(file.relative_to(path) for file in path.rglob("*.py") if file != path / MODELING_FILE.name)
    if others:
        raise CheckpointError(f"{others[0]} is code that is not this package's; {advice}")
    file = path / MODELING_FILE.name
    ours = MODELING_FILE.read_bytes()
    if not file.is_file() or file.stat().st_size != len(ours) or file.read_bytes() != ours:
        raise CheckpointError(f"{file.name} is not the file of this version of this package; {advice}")
    return True


def check_no_adapter(folder: Path) -> None:
    """Raises CheckpointError for an adapter beside weights: transformers would load it, with modules that it names."""
    if (folder / ADAPTER).is_file():
        raise CheckpointError(f"holds an adapter beside the weights ({ADAPTER}); merge it first, or remove it")


def check_attention(name: str, config: PretrainedConfig) -> None:
    """Raises CheckpointError for a config that names a kernel of the Hub: transformers would fetch and run it."""
    for asked in ("_attn_implementation", "_experts_implementation"):
        if isinstance(kernel := getattr(config, asked, None), str) and "/" in kernel:
            raise CheckpointError(f"{name}: config.json asks for code of the Hub ({kernel}), which {_ONLY_TRUSTED}")


def drop_foreign_code(folder: Path, *, trust_remote_code: bool) -> None:
    """In place: takes every `auto_map` out of the configs that transformers has just written, but that of an own type.

    Where the user trusts the code, entries whose file was written too stay as well.

    Raises:
        CheckpointError: a config cannot be read, so that what it names is not known.
    """
    for file in sorted(folder.glob("*config.json")):
        values = read_json(file, "a config", largest=LARGEST_OF_TRANSFORMERS)
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: cannot be read as a config: {values!r:.40} is no dictionary")
        model_type = values.get("model_type") if file.name == "config.json" else None
        own = auto_map(model_type) if model_type in modeling_moreau.OWN_TYPES else {}
        dropped: list[str] = []
        kept = _without(values, folder if trust_remote_code else None, dropped)
        kept.pop("configuration_files", None)  # names configs for versions of transformers, which are not written
        if own:
            kept["auto_map"] = own
            dropped = [name for name in dropped if name not in map(ascii, own.values())]
        if dropped:
            words = "%s named code that was not run and is not part of the result: auto_map %s is left out"
            logger.warning(words, file.name, ", ".join(dropped))
        if kept != values:
            write_text(file, json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _without(values: Any, trusted: Path | None, dropped: list[str]) -> Any:
    """A config without any `auto_map`; where the folder is trusted, those entries stay whose file lies there."""
    if isinstance(values, list):
        return [_without(value, trusted, dropped) for value in values]
    if not isinstance(values, dict):
        return values
    found = {key: _without(value, trusted, dropped) for key, value in values.items() if key != "auto_map"}
    if (named := values.get("auto_map")) is not None:
        entries = named if isinstance(named, dict) else {"AutoTokenizer": named}
        kept = {key: value for key, value in entries.items() if trusted is not None and _lies_in(trusted, value)}
        gone = [_names(value) for key, value in entries.items() if key not in kept]
        dropped.extend(" | ".join(ascii(name)[-80:] for name in names) for names in gone)  # the class stands at the end
        found |= {"auto_map": kept} if kept else {}
    return found


def _lies_in(folder: Path, reference: Any) -> bool:
    """Whether the files of a class `module.Class`, or of a pair of them, lie in a folder."""
    names = _names(reference)
    modules = [name.rpartition(".")[0] if isinstance(name, str) else "" for name in names]
    there = (module and "--" not in module and (folder / f"{module}.py").is_file() for module in modules)
    return bool(names) and all(there)


def _names(reference: Any) -> list[Any]:
    return [name for name in (reference if isinstance(reference, (list, tuple)) else [reference]) if name is not None]
