"""Block influence of a layer: 1 − mean cosine similarity of its input and output (ShortGPT, Eq. 1). Forward only.

BI_i = 1 − E_{X,t} [ X_{i,t} · X_{i+1,t} / (‖X_{i,t}‖₂ ‖X_{i+1,t}‖₂) ]          (https://arxiv.org/abs/2403.03853)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .papers import SHORT_GPT

SUMMARY = "1 − mean cosine similarity of a layer's input and output"
PAPER = SHORT_GPT

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def block_influence(model: PreTrainedModel, layers: nn.ModuleList, batches: Iterable[Tensor]) -> Tensor:
    """Measures every decoder layer of a model in `scoring_mode`, in one pass per batch of ids `(windows, length)`.

    Returns:
        float64 tensor `(layers,)` on CPU: 0 for a layer that leaves the direction of the residual stream as it is.
    """
    import torch

    from ..models.placement import input_device

    similarity = torch.zeros(len(layers), dtype=torch.float64, device="cpu")
    tokens = 0

    def watch(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before = args[0].float()  # (windows, length, hidden); fp32: squares overflow in fp16
            after = (output[0] if isinstance(output, tuple) else output).float()
            similarity[index] += torch.cosine_similarity(before, after, dim=-1).sum(dtype=torch.float64).cpu()

        return hook

    handles = [layer.register_forward_hook(watch(index)) for index, layer in enumerate(layers)]
    try:
        for batch in batches:
            model.model(input_ids=batch.to(input_device(model)), use_cache=False)
            tokens += batch.numel()
    finally:
        for handle in handles:
            handle.remove()
    return 1 - similarity / max(tokens, 1)
