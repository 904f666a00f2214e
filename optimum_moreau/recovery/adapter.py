"""A LoRA adapter apart from its model: saved, read, checked against a model, merged into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import CheckpointError, first_line
from ..plan import fingerprint

if TYPE_CHECKING:
    from peft import LoraConfig

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."  # of every weight that peft saves
_A, _B = ".lora_A.weight", ".lora_B.weight"  # (r, in_features), (out_features, r)


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA adapter, apart from its model.

    Attributes:
        weights: as peft saves them.
        config: of peft; it names the base model by its Hub id, or not at all.
        base: fingerprint of the model it was trained on; empty where it was trained elsewhere.
    """

    weights: Mapping[str, Tensor]
    config: LoraConfig
    base: str = ""

    def save(self, folder: Path) -> None:
        """Writes `adapter_model.safetensors` and `adapter_config.json`."""
        folder.mkdir()
        save_file(dict(self.weights), folder / _WEIGHTS, metadata={"format": "pt", "base_fingerprint": self.base})
        self.config.save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Reads what peft, or `save`, wrote.

        Raises:
            CheckpointError: no LoRA adapter there, or not in safetensors.
        """
        from peft import LoraConfig, PeftConfig

        path = Path(folder).expanduser()
        if not (path / _CONFIG).is_file() or not (path / _WEIGHTS).is_file():
            raise CheckpointError(f"{path.name}: holds no adapter ({_CONFIG} and {_WEIGHTS})")
        try:
            config = PeftConfig.from_pretrained(str(path))
            with safe_open(path / _WEIGHTS, "pt") as tensors:
                weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (a file)
                base = (tensors.metadata() or {}).get("base_fingerprint", "")
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{path.name}: cannot be read as an adapter ({first_line(error)})") from error
        if not isinstance(config, LoraConfig):
            raise CheckpointError(f"{path.name}: is an adapter of type {config.peft_type}; only LoRA is merged")
        if config.base_model_name_or_path and Path(config.base_model_name_or_path).expanduser().exists():
            config.base_model_name_or_path = None  # a folder of this machine
        return cls(weights, config, base)

    def merge_into(self, model: PreTrainedModel) -> None:
        """In place: W ← W + α/r·BA for every weight that was adapted.

        Raises:
            CheckpointError: the adapter was trained on another model; this one is as it was.
        """
        from peft import get_peft_model, set_peft_model_state_dict

        self._check_base(model)
        tuned: Any = get_peft_model(model, self.config)
        loaded: Any = set_peft_model_state_dict(tuned, dict(self.weights))
        if loaded.unexpected_keys:
            tuned.unload()
            forget_peft(model)
            raise CheckpointError(
                f"adapter: {loaded.unexpected_keys[0]} is not in this model; it was trained on another"
            )
        tuned.merge_and_unload()
        forget_peft(model)

    def _check_base(self, model: PreTrainedModel) -> None:
        modules = dict(model.named_modules())
        for name, weight in self.weights.items():
            kind = _A if name.endswith(_A) else _B if name.endswith(_B) else None
            if kind is None:
                continue
            target = name.removeprefix(_PREFIX).removesuffix(kind)
            module = modules.get(target)
            if not isinstance(module, nn.Linear):
                raise CheckpointError(f"adapter: this model has no {target}; it was trained on another model")
            found, expected = (
                (weight.shape[1], module.in_features) if kind == _A else (weight.shape[0], module.out_features)
            )
            if found != expected:
                side = "inputs" if kind == _A else "outputs"
                raise CheckpointError(
                    f"adapter: {target} has {found} {side} there, {expected} in this model; it was trained on another"
                    " model (before pruning?)"
                )
        if self.base and self.base != fingerprint(model):
            raise CheckpointError(
                "adapter: was trained on other weights of the same shapes; give the model it belongs to"
            )


def forget_peft(model: PreTrainedModel) -> None:
    """In place: removes the marks that peft leaves on a model whose adapter was merged or unloaded."""
    if hasattr(model, "peft_config"):
        del model.peft_config
    model._hf_peft_config_loaded = False
