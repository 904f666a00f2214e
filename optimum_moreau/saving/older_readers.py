"""Spells a saved folder so that readers older than transformers 5 see the same network and the same tokens.

transformers 5 writes RoPE's base only inside `rope_parameters`, where 4.57 (bundled by runtimes) does not look: it
falls back to its default, silently. And it names a tokenizer class that 4.57 does not know. Both spellings stand in the
files afterwards; transformers 5 reads what it read before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from ..errors import CheckpointError, quiet
from ..files import LARGEST_OF_TRANSFORMERS, read_json, write_json

_CONFIG, _TOKENIZER = "config.json", "tokenizer_config.json"
_APART = ("rope_theta", "partial_rotary_factor")  # stand beside `rope_scaling` in 4.57
# What 4.57 computes otherwise, whatever the files say.
_OLDER = "transformers older than 5"
_NOTES = {
    "gemma2": (("float32", "bfloat16", "float16"), f"{_OLDER} needs attn_implementation='eager' for it"),
    "apertus": (("float32", "float16"), f"{_OLDER} rounds the weights of its activations to bfloat16"),
}
_NEWER = f"{_OLDER} reads it as another network"


def spell_for_older_readers(folder: Path) -> tuple[str, ...]:
    """In place: adds to a saved folder what transformers 4.57 reads; returns what it cannot, a line each."""
    if (folder / _TOKENIZER).is_file():
        _spell_tokenizer(folder / _TOKENIZER)
    try:
        values = read_json(folder / _CONFIG, "a model's config")
    except CheckpointError:  # verification will say what is wrong
        return ()
    if "per_layer_config" in values:  # an own type, which 4.57 cannot read at all
        return ()
    older, words = _older_spelling(values)
    if not _read_alike(values, older):
        return (f"{_NEWER}: its RoPE is not spelled there",)
    write_json(folder / _CONFIG, dict(sorted(older.items())))
    dtypes, note = _NOTES.get(values["model_type"], ((), ""))
    return (*words, note) if values.get("dtype") in dtypes else words


def _older_spelling(values: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config with both spellings, and what 4.57 has none for."""
    older = dict(values)
    if "dtype" in values:
        older.setdefault("torch_dtype", values["dtype"])  # until 4.55
    rope: dict[str, Any] = values.get("rope_parameters") or {}
    if not rope:
        return older, ()
    if not any(isinstance(one, dict) for one in rope.values()):
        return older | _flat(rope), _longrope_words(values, rope)
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    if not full or not sliding:
        return older, (f"{_NEWER}: its kinds of layers have RoPE of their own",)
    older |= _flat(full) | {"rope_local_base_freq": sliding["rope_theta"]}
    scaled = sliding.get("rope_type", "default") != "default"
    return older, (f"{_NEWER}: RoPE of its sliding layers is scaled",) if scaled else ()


def _flat(rope: dict[str, Any]) -> dict[str, Any]:
    """RoPE of one kind, as 4.57 spells it."""
    spelled = {key: rope[key] for key in _APART if key in rope}
    if rope.get("rope_type", "default") != "default":
        spelled["rope_scaling"] = {key: value for key, value in rope.items() if key not in _APART}
    if rope.get("rope_type") == "longrope":
        spelled["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return spelled


def _longrope_words(values: dict[str, Any], rope: dict[str, Any]) -> tuple[str, ...]:
    """4.57 takes longrope's factor from the positions, whatever stands there."""
    if rope.get("rope_type") != "longrope" or rope.get("attention_factor") is not None or "factor" not in rope:
        return ()
    factor = values["max_position_embeddings"] / rope["original_max_position_embeddings"]
    return () if factor == rope["factor"] else (f"{_NEWER}: its longrope has a factor of its own",)


def _read_alike(values: dict[str, Any], older: dict[str, Any]) -> bool:
    """Whether this transformers reads every value as it did."""
    kind = CONFIG_MAPPING[values["model_type"]]
    with quiet("transformers"):
        first, second = (kind.from_dict(json.loads(json.dumps(one))).to_dict() for one in (values, older))
    return all(second.get(key) == value for key, value in first.items())


def _spell_tokenizer(path: Path) -> None:
    values = read_json(path, "a tokenizer's config", largest=LARGEST_OF_TRANSFORMERS)
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    write_json(path, values, largest=LARGEST_OF_TRANSFORMERS)
