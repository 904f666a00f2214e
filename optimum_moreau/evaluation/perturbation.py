"""Small changes of a model, or of how much it is calibrated on, by name, e.g. `bf16`, `noise:0.01`, `samples:100`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..models.buffers import reset_buffers
from ..registry import suggestion

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_KNOWN = (*DTYPES, "int8", "noise:LEVEL", "samples:N", "seeds:N")
BASE = "as loaded"  # the name of the model as it is


@dataclass(frozen=True)
class Perturbation:
    """A change of the model, or of how much it is calibrated on.

    Attributes:
        name: `bf16`, `fp16`, `fp32`, `int8`, `noise:0.01`, `samples:100`, or that of the model as it is.
        kind: `dtype`, `int8`, `noise`, `samples` or `base`.
        value: the level, or the number of samples.
    """

    name: str
    kind: str
    value: float = 0.0

    @torch.no_grad()
    def change(self, model: PreTrainedModel) -> PreTrainedModel:
        """In place: makes the change; returns the model."""
        if self.kind == "dtype":
            changed: Any = model
            cast = changed.to(DTYPES[self.name])
            reset_buffers(cast)  # frequencies stay float32 where a model is loaded in that dtype
            return cast
        generator = torch.Generator("cpu").manual_seed(0)
        for parameter in model.parameters() if self.kind in ("noise", "int8") else ():
            if parameter.dim() != 2:
                continue
            w = parameter.float()
            if self.kind == "noise":  # w ← w + level·|w|·z
                z = torch.randn(w.shape, generator=generator, dtype=torch.float32, device="cpu").to(w.device)
                parameter.copy_(w + self.value * w.abs() * z)
            else:  # w ← round(w/s)·s, s = max|w|/127 of each output row
                s = w.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
                parameter.copy_((w / s).round() * s)
        return model


def parse_perturbations(text: str) -> tuple[list[Perturbation], int]:
    """Reads `bf16,fp16,noise:0.01,int8,samples:100,seeds:5`; returns the perturbations and the number of seeds.

    Raises:
        ConfigError: an unknown name, or a number that is missing or out of range.
    """
    found, seeds = [], 1
    for part in (part.strip() for part in text.split(",")):
        kind, _, number = part.partition(":")
        if part in DTYPES:
            found.append(Perturbation(part, "dtype"))
        elif part == "int8":
            found.append(Perturbation(part, "int8"))
        elif kind in ("noise", "samples", "seeds"):
            try:
                value = float(number) if kind == "noise" else int(number)
                if not value > 0:
                    raise ValueError
            except ValueError:
                wanted = "a level, e.g. noise:0.01" if kind == "noise" else f"a whole number ≥ 1, e.g. {kind}:5"
                raise ConfigError(f"perturbations: '{part}' needs {wanted}") from None
            if kind == "seeds":
                seeds = int(value)
            else:
                found.append(Perturbation(part, kind, value))
        else:
            known = ", ".join(_KNOWN)
            raise ConfigError(f"perturbations: unknown '{part}'.{suggestion(kind, DTYPES)} Known: {known}")
    return list(dict.fromkeys(found)), seeds
