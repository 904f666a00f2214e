"""Loads a model and its tokenizer from a folder or the Hub: safetensors only, remote code only when asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from ..errors import CheckpointError, ConfigError, UnsupportedModelError, first_line, quiet
from ..files import LARGEST_OF_TRANSFORMERS, read_json, read_shapes
from ..modeling import register_auto_classes
from ..models.buffers import skeleton
from ..models.families import family_of
from ..models.placement import check_device
from ..models.undisturbed import undisturbed
from ..models.units import EMBEDDINGS
from ..registry import suggestion
from . import readable
from .readable import CONFIG, local_folder, pinned, weight_files
from .trust import check_attention, check_no_adapter

logger = logging.getLogger(__name__)

_DTYPES = ("auto", "float32", "bfloat16", "float16")
# What transformers raises for values that are none for a model (a head count of 0, a name where a number is meant,
# layers within layers), and for a folder or repository that cannot be read.
_ODD = (TypeError, AttributeError, ArithmeticError, RecursionError, AssertionError, NotImplementedError)
_UNREADABLE = (OSError, ValueError, LookupError, ImportError, StrictDataclassError, SafetensorError, *_ODD)
# More than any model has: a config that says so is damaged, and building it would take for ever.
_MOST = {"num_hidden_layers": 2000, "num_attention_heads": 2**14, "num_key_value_heads": 2**14, "head_dim": 2**14}
_MOST |= {"hidden_size": 2**20, "intermediate_size": 2**22, "vocab_size": 2**24}


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Reads a model's config.json.

    Raises:
        CheckpointError: no such folder or repository; an adapter or a GGUF file; or config.json is missing, damaged, or
            names code to be fetched.
    """
    register_auto_classes()
    folder = Path(name).expanduser()
    if words := readable.other_kind(folder):
        raise CheckpointError(f"{name}: {words}")
    if folder.is_file():
        raise CheckpointError(f"{name}: is a file; give the folder that holds config.json")
    if not folder.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise CheckpointError(f"{name}: no such folder")
    if not folder.is_dir() and "/" not in name:  # no request for what cannot be on the Hub
        hint = suggestion(name, (path.name for path in Path().iterdir() if path.is_dir()))
        raise CheckpointError(f"{name}: no such folder.{hint} An id of the Hub has the form org/name")
    revision = pinned(name, revision)
    readable.check_model_files(local_folder(name, revision))
    try:
        with quiet("huggingface_hub"):  # it logs every retry
            where = {"revision": revision, "trust_remote_code": trust_remote_code}
            config: PretrainedConfig = AutoConfig.from_pretrained(name, **where)
    except _UNREADABLE as error:
        raise CheckpointError(_no_config(name, revision, error)) from error
    if not trust_remote_code:
        check_attention(name, config)
    return config


@undisturbed()
def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Loads a causal language model of a supported family.

    Args:
        name: folder or Hub id.
        dtype: `auto` (as saved), `float32`, `bfloat16` or `float16`.
        device: torch device, or `auto` to spread the model over all GPUs; default: cuda where there is one.
        revision: of the Hub repository.
        trust_remote_code: run modeling code that lies beside the weights.

    Raises:
        CheckpointError: not found, damaged, incomplete, or without safetensors.
        ConfigError: unknown dtype or device.
        UnsupportedModelError: of another family.
    """
    revision = pinned(name, revision)
    config = _supported_config(name, dtype, revision=revision, trust_remote_code=trust_remote_code)
    _refuse_others(name, revision)
    target = None if device == "auto" else check_device(device)
    _check_embeddings(name, config)
    try:
        with quiet("transformers"):  # its report of the weights that do not fit is a table
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=dtype,
                device_map="auto" if target is None else None,
                revision=revision,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # `_check_complete` refuses them, by name
                output_loading_info=True,
            )
    except (*_UNREADABLE, RuntimeError) as error:
        folder = local_folder(name, pinned(name, revision))
        damage = readable.damage_of(file for file in weight_files(folder) if file.is_file()) if folder else ""
        raise CheckpointError(f"{name}: the weights cannot be loaded ({damage or first_line(error)})") from error
    model, found = loaded
    _check_complete(name, found)
    return model if target is None else model.to(target)


def load_skeleton(
    name: str, *, dtype: str = "auto", revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Builds a model on the meta device from config.json alone; arguments and errors as for `load_model`."""
    config = _supported_config(name, dtype, revision=revision, trust_remote_code=trust_remote_code)
    chosen: Any = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    try:
        return skeleton(config, chosen, trust_remote_code=trust_remote_code)
    except _UNREADABLE as error:
        raise CheckpointError(f"{name}: config.json describes no model ({first_line(error)})") from error


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer; arguments as for `load_model`; raises CheckpointError for a missing or damaged one."""
    revision = pinned(name, revision)
    readable.check_tokenizer_files(local_folder(name, revision))
    where = {"revision": revision, "trust_remote_code": trust_remote_code}  # None of it would ask
    try:
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **where)
    except Exception as error:  # the tokenizers library raises Exception itself
        folder = local_folder(name, revision)
        readable.check_tokenizer_files(folder, whole=True)
        readable.check_vocabulary_there(name, folder)
        raise CheckpointError(
            f"{name}: no tokenizer that can be loaded; add the base model's tokenizer files ({first_line(error)})"
        ) from error
    if made.is_fast and not trust_remote_code:  # of some classes one is made without a vocabulary
        readable.check_vocabulary_there(name, local_folder(name, revision))
    return made


def check_same_tokenizer(
    first: str, second: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> None:
    """Refuses two models that read different tokens, whose measures per token do not compare; a revision of the first.

    Raises:
        CheckpointError: one has no tokenizer.
        ConfigError: their vocabularies differ.
    """
    one = load_tokenizer(first, revision=revision, trust_remote_code=trust_remote_code).get_vocab()
    two = load_tokenizer(second, trust_remote_code=trust_remote_code).get_vocab()
    if one != two:
        odd = len({token for token in one.keys() | two.keys() if one.get(token) != two.get(token)})
        raise ConfigError(
            f"{first} and {second} have different tokenizers ({len(one):,} and {len(two):,} tokens, {odd:,} differ);"
            " give two models of one tokenizer"
        )


def base_revision(name: str, revision: str | None = None) -> str | None:
    """Returns the commit of a Hub model that was loaded, read off the cache; `None` for a folder."""
    if Path(name).expanduser().is_dir():
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision


def _no_config(name: str, revision: str | None, error: Exception) -> str:
    """What to say where transformers makes no config of a model's folder, or of none."""
    folder = local_folder(name, revision)
    if folder is None or not (folder / CONFIG).is_file():
        if Path(name).expanduser().is_dir():
            return f"{name}: holds no {CONFIG}; give the folder of a model"
        words = readable.kind_on_hub(name, revision)
        return f"{name}: {words or f'no such folder, and not found on the Hub ({first_line(error)})'}"
    readable.check_model_files(folder)  # of the Hub, what has just been fetched
    words = _impossible(read_json(folder / CONFIG, "a model's config", largest=LARGEST_OF_TRANSFORMERS))
    return f"{folder / CONFIG}: cannot be read as a model's config: {words or first_line(error)}"


def _impossible(values: dict[str, Any]) -> str:
    """The first size of a config that no model can have, if any."""
    for field, most in _MOST.items():
        value = values.get(field)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            return f"{field} {value!r:.40} is none that a model can have; give a whole number from 1 to {most:,}"
    return ""


def _supported_config(name: str, dtype: str, *, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """The config of a model that can be loaded in a dtype and pruned."""
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype: unknown value '{dtype}'. Known: {', '.join(_DTYPES)}")
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    family_of(config)
    values = config.to_dict()
    for part in (values, *(values.get("per_layer_config") or {}).values()):
        if words := _impossible(part):
            raise CheckpointError(f"{name}: {CONFIG}: {words}")
    if getattr(config, "quantization_config", None):
        raise UnsupportedModelError(f"{name}: is quantised; prune the unquantised model, and quantise the result")
    return config


def _refuse_others(name: str, revision: str | None) -> None:
    """Refuses pickles; and an adapter, which transformers would put on the model, with modules that it names."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        found = f"pickle weights only ({pickles[0]})" if pickles else "no weights"
        raise CheckpointError(f"{name}: {found}; weights must be safetensors (model.safetensors)")

    file = None if folder.is_dir() else find_adapter_config_file(name, revision=revision)
    try:
        check_no_adapter(Path(file).parent if file else folder)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _check_embeddings(name: str, config: PretrainedConfig) -> None:
    """Refuses a config that is not of the weights beside it, before a model of its size is allocated."""
    folder, weight = Path(name).expanduser(), f"{EMBEDDINGS}.weight"
    expected = (config.vocab_size, config.hidden_size)
    for file in weight_files(folder) if folder.is_dir() else ():
        if readable.are_whole([file]):  # else the load says so, by name
            _check_shape(name, weight, read_shapes(file, "weights").get(weight, expected), expected)


def _check_shape(name: str, weight: str, saved: Iterable[int], expected: Iterable[int]) -> None:
    if tuple(saved) != tuple(expected):
        shapes = f"{tuple(saved)} in the file, {tuple(expected)} by config.json"
        raise CheckpointError(f"{name}: {weight} is {shapes}; the two are not of one model")


def _check_complete(name: str, found: dict[str, Any]) -> None:
    """Refuses weights that are missing or of another shape: transformers would fill in random ones."""
    if found["mismatched_keys"]:
        _check_shape(name, *min(found["mismatched_keys"], key=str))
    if missing := found["missing_keys"]:
        count = f"{len(missing)} of the model's weights are"
        raise CheckpointError(f"{name}: {count} not in its files (first: {min(missing)})")
    if more := found["unexpected_keys"]:
        words = "%s: %d weights in its files are not the model's: ignored (first: %s)"
        logger.warning(words, name, len(more), min(more))
