"""Random models to measure on, and how seconds and bytes are taken."""

from __future__ import annotations

import gc
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.models.memory import reset_peak_memory, resident_bytes
from optimum_moreau.models.units import Block, model_shape
from optimum_moreau.scoring.scores import score_units

SIZES = {  # hidden size, MLP, layers, heads
    "25M": (512, 1376, 6, 8),
    "110M": (768, 2048, 12, 12),
    "350M": (1024, 2816, 24, 16),
    "1B": (2048, 5632, 22, 32),
    "7B": (4096, 11008, 32, 32),
}
VOCABULARY = 8192


class Work:
    """A random model, its shape, and windows: of the size, dtype, device, samples and length that are asked for."""

    def __init__(self, a: Namespace) -> None:
        torch.manual_seed(0)
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        sizes = dict(zip(names, SIZES[a.size], strict=True), vocab_size=VOCABULARY)
        self.config = AutoConfig.for_model("llama", tie_word_embeddings=False, **sizes)
        with torch.device(a.device):
            self.model = AutoModelForCausalLM.from_config(self.config, dtype=getattr(torch, a.dtype)).eval()
        self.shape = model_shape(self.model)
        self.tokens = torch.randint(VOCABULARY, (a.samples, a.length))
        self.layer_bytes = sum(p.numel() * p.element_size() for p in self.model.model.layers[0].parameters())

    def resolved(self, **fields: Any) -> MoreauPrunerConfig:
        """A config with every layer in scope."""
        scope = dict.fromkeys(("attention_layers", "mlp_layers"), (0, self.config.num_hidden_layers))
        return MoreauPrunerConfig(**scope, **fields).resolve(self.config)

    def score(self, config: MoreauPrunerConfig, windows: int | None = None) -> Any:
        """Scores by a config, on so many windows."""
        return score_units(self.model, self.shape, self.tokens[:windows], config)


def timed(actions: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 0) -> dict[str, list[float]]:
    """Seconds of each action, in turns, after some that warm up."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for turn in range(warm + rounds):
        for name, action in actions.items():
            wait()
            start = time.perf_counter()
            action()
            wait()
            if turn >= warm:
                found[name].append(time.perf_counter() - start)
    return found


def medians(actions: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 0) -> dict[str, float]:
    """Of the seconds of each action."""
    return {name: statistics.median(found) for name, found in timed(actions, rounds, warm).items()}


def peak_of(action: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes above what is held before, at the peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    before = resident_bytes()
    reset_peak_memory()
    action()
    return resident_bytes(peak=True) - before


def apart(measure: Callable[[Namespace], dict[str, Any]], a: Namespace) -> dict[str, Any]:
    """Measures in a process of its own, where nothing else has allocated."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, a).result()


def warm(a: Namespace) -> Work:
    """A model, after the libraries' own buffers and imports."""
    small = Work(Namespace(**{**vars(a), "size": "25M", "samples": 1, "length": 16}))
    small.score(small.resolved(criterion="taylor"))
    return Work(a)


def names_of(blocks: Iterable[Block]) -> set[str]:
    """The weights of blocks."""
    return {name for block in blocks for name in block.weight_names().values()}
