"""What a model writes after some prompts, greedily, to be read side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from ..data.windows import text_prefix
from ..errors import ConfigError
from ..models.placement import input_device
from ..models.undisturbed import plain_outputs, undisturbed


@undisturbed()
@torch.no_grad()
def generations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, new_tokens: int = 64
) -> list[str]:
    """Continues each prompt by the likeliest token each time; returns the continuations.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: texts, as they are; no chat template. They begin as the tokenizer begins a text, once.
        new_tokens: at most.

    Raises:
        ConfigError: a prompt has no tokens, or there is no token to add.
    """
    if new_tokens < 1:
        raise ConfigError(f"new_tokens: {new_tokens} is not a whole number ≥ 1")
    found, prefix = [], text_prefix(tokenizer)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    generate: Any = model.generate
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(input_device(model))
        if prefix and tokens["input_ids"][0, : 2 * len(prefix)].tolist() == 2 * prefix:  # the prompt begins so itself
            tokens = BatchEncoding({name: values[:, len(prefix) :] for name, values in tokens.items()})
        if not tokens["input_ids"].numel():
            raise ConfigError(f"prompt: {prompt!r} has no tokens; give some words")
        with plain_outputs(model):
            ids = generate(**tokens, max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad)
        found.append(str(tokenizer.decode(ids[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)))
    return found
