"""A LoRA adapter apart from its model: saved, read, checked against a model, merged into it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.sources import model_reference
from ..errors import CheckpointError, first_line
from ..files import read_json, read_tensors, write_tensors
from ..files.temporary import partial_folder, reason, replace_folder
from ..planning import fingerprint

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."  # of every weight that peft saves
# (r, in_features), (out_features, r), and (out_features,) of DoRA
_KINDS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA adapter, apart from its model.

    Attributes:
        weights: as peft saves them.
        config: of peft; it names the base model by its Hub id, or by its folder's last name.
        base: fingerprint of the model it was trained on; empty where it was trained elsewhere.
    """

    weights: Mapping[str, Tensor]
    config: LoraConfig
    base: str = ""

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(weight.numel() for weight in self.weights.values())

    def save(self, folder: Path) -> None:
        """Writes `adapter_model.safetensors` and `adapter_config.json`; one that was there is replaced in one step.

        Raises:
            CheckpointError: it cannot be written.
        """
        config = copy.copy(self.config)  # peft fills the path in again whenever it saves a state of the training
        config.base_model_name_or_path = model_reference(config.base_model_name_or_path)
        try:
            with partial_folder(folder.parent, folder.name) as partial:
                (made := partial / "adapter").mkdir()
                write_tensors(made / _WEIGHTS, self.weights, {"format": "pt", "base_fingerprint": self.base})
                config.save_pretrained(str(made))
                replace_folder(made, folder)
        except OSError as error:
            raise CheckpointError(f"{folder.name}: cannot be written ({reason(error)})") from error

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Reads what peft, or `save`, wrote.

        Raises:
            CheckpointError: no LoRA adapter there, or not in safetensors.
        """
        path = Path(folder).expanduser()
        if not all((path / name).is_file() for name in (_CONFIG, _WEIGHTS)):
            raise CheckpointError(f"{path.name}: holds no adapter ({_CONFIG} and {_WEIGHTS})")
        read_json(path / _CONFIG, "an adapter's config")  # bounded, before peft reads it
        weights, metadata = read_tensors(path / _WEIGHTS, "an adapter's weights")
        try:
            config = PeftConfig.from_pretrained(str(path))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path.name}: cannot be read as an adapter ({first_line(error)})") from error
        if not isinstance(config, LoraConfig):
            raise CheckpointError(f"{path.name}: is an adapter of type {config.peft_type}; only LoRA is merged")
        _check_plain(path.name, config)
        # nothing of the file names a module to import, or a folder of someone's machine
        config.megatron_core, config.auto_mapping = LoraConfig.megatron_core, None
        config.base_model_name_or_path = model_reference(config.base_model_name_or_path)
        return cls(weights, config, metadata.get("base_fingerprint", ""))

    def merge_into(self, model: PreTrainedModel, *, keep_zeros: bool = False) -> None:
        """In place: W ← W + α/r·BA for every weight that was adapted.

        Args:
            model: that the adapter was trained on.
            keep_zeros: as for `lora_on`.

        Raises:
            CheckpointError: the adapter was trained on another model, or is not whole; this model is as it was.
        """
        self._check_base(model)
        try:
            with lora_on(model, copy.deepcopy(self.config), keep_zeros=keep_zeros) as tuned:
                expected = get_peft_model_state_dict(tuned, save_embedding_layers=False).keys()
                if odd := sorted(expected ^ self.weights.keys()):
                    where = "is missing in the adapter" if odd[0] in expected else "is not in this model"
                    raise CheckpointError(f"adapter: {odd[0]} {where}; it is not whole, or of another model")
                set_peft_model_state_dict(tuned, dict(self.weights))
        # peft's own, of a config that does not go with the weights, or holds values of another kind
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(f"adapter: cannot be put on this model ({first_line(error)})") from error

    def _check_base(self, model: PreTrainedModel) -> None:
        modules = dict(model.named_modules())
        head = model.get_output_embeddings() if model.config.tie_word_embeddings else None
        for name, weight in self.weights.items():
            if not name.endswith(_KINDS):
                raise CheckpointError(f"adapter: {name} is no LoRA of a linear layer; only those are merged")
            if not torch.isfinite(weight).all():
                raise CheckpointError(f"adapter: {name} is not finite")
            target, _, kind = name.removeprefix(_PREFIX).partition(".lora_")
            module = modules.get(target)
            if not isinstance(module, nn.Linear):
                raise CheckpointError(f"adapter: this model has no linear layer {target}; it was trained on another")
            if module is head:
                raise CheckpointError(f"adapter: {target} is tied to the embeddings, which a merge would change too")
            ins, outs = (weight.shape[1], module.in_features), (weight.shape[0], module.out_features)
            (found, expected), side = (ins, "inputs") if kind.startswith("A") else (outs, "outputs")
            if found != expected:
                raise CheckpointError(
                    f"adapter: {target} has {found} {side} there, {expected} in this model; it was trained on another"
                    " model (before pruning?)"
                )
        if self.base and self.base != fingerprint(model):
            raise CheckpointError(
                "adapter: was trained on other weights of the same shapes; give the model it belongs to"
            )


def _check_plain(name: str, config: LoraConfig) -> None:
    """Refuses what a config makes of a model beside LoRA, and expressions over which peft could search without end."""
    if config.megatron_config is not None:
        raise CheckpointError(f"{name}: is of Megatron's layers; only LoRA of plain linear layers is merged")
    if config.layer_replication is not None:
        raise CheckpointError(f"{name}: repeats layers (layer_replication); only LoRA of the model as it is is merged")
    for field in ("rank_pattern", "alpha_pattern"):
        if not isinstance(getattr(config, field) or {}, dict):
            raise CheckpointError(f"{name}: {field} is no dictionary")
    modules = [one for one in (config.target_modules, config.exclude_modules) if isinstance(one, str)]
    for text in (*modules, *(config.rank_pattern or {}), *(config.alpha_pattern or {})):
        try:
            re.compile(text)
        except re.error as error:
            raise CheckpointError(f"{name}: '{text:.40}' is no regular expression ({error})") from error
        # a repeated group, or many repetitions, can take for ever
        if len(text) > 1000 or re.search(r"\)[*+?{]", text) or len(re.findall(r"[*+{]", text)) > 4:
            raise CheckpointError(
                f"{name}: the expression '{text:.40}' may match without end; name the modules in a list"
            )


@contextmanager
def lora_on(model: PreTrainedModel, config: LoraConfig, *, keep_zeros: bool = False) -> Iterator[Any]:
    """In place: LoRA on a model, merged into its weights when the block ends; after an error the model is as it was.

    Args:
        model: any causal language model.
        config: of peft; names the base model by its Hub id afterwards, or by its folder's last name.
        keep_zeros: of a masked model: weights that are zero stay so, y = x·(W + α/r·BA ⊙ M)ᵀ with M = [W ≠ 0], within
            the block and after it; takes the product BA of one layer at a time.
    """
    training, use_cache = model.training, model.config.use_cache
    requires = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    tuned: Any = None
    try:
        linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        zeros = {name: module.weight == 0 for name, module in linear.items() if keep_zeros}
        config.base_model_name_or_path = None  # else peft warns that it is this model's path now
        tuned = get_peft_model(model, config)
        for name, module in model.named_modules():
            if name in zeros and hasattr(module, "lora_A"):
                module.register_forward_hook(_masked(zeros[name]))
        config.base_model_name_or_path = model_reference(model.config.name_or_path)
        yield tuned
    except BaseException:
        if tuned is not None:
            tuned.unload()
        raise
    else:
        tuned.merge_and_unload()
        with torch.no_grad():
            for name, there in zeros.items():
                model.get_parameter(f"{name}.weight")[there] = 0
        config.inference_mode = True
    finally:
        model.train(training)
        model.config.use_cache = use_cache
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(requires[name])
        if hasattr(model, "peft_config"):  # the marks that peft leaves
            del model.peft_config
        model._hf_peft_config_loaded = False


def _masked(zeros: Tensor) -> Any:
    """A hook that computes a LoRA layer's output with the product BA masked."""

    def forward(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        (x, *_), (name, *_) = args, layer.active_adapters
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        delta = ((b @ a) * layer.scaling[name]).masked_fill(zeros, 0)  # (out, in)
        adapted = F.linear(layer.lora_dropout[name](x).to(delta.dtype), delta)
        return layer.base_layer(x) + adapted.to(output.dtype)

    return forward
