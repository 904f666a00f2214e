"""Run as a script: loads saved folders in a fresh process, through the Auto classes only, and writes what it found.

Reads a JSON request from standard input: `package` (import optimum_moreau first; otherwise it must not be there),
`results` (a folder to write `NAME.safetensors` and `NAME.json` into), `folders` (name → `folder`, `remote_code`).
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

PROMPT = "A small model reads"
NEW_TOKENS = 8


def checkpointed_gradient(model, ids, *, enabled):
    if enabled:
        model.activation_checkpointing_enable()
    model.train().zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.eval()
    return model.get_input_embeddings().weight.grad.clone()


def look(folder, **remote):
    """What a user of this folder sees: tensors, and words."""
    config = AutoConfig.from_pretrained(folder, **remote)
    tokenizer = AutoTokenizer.from_pretrained(folder, **remote)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, **remote)
    decoder = AutoModel.from_pretrained(folder, **remote)
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **remote)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **remote)
    greedy = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    with torch.no_grad():
        tensors = {
            "ids": ids,
            "logits": model(ids).logits,
            "hidden": decoder(ids).last_hidden_state,
            "eager": eager(ids).logits,
            "bfloat16": half(ids).logits,
            "dynamic cache": model.generate(ids, **greedy),
            "static cache": model.generate(ids, cache_implementation="static", **greedy),
            "no cache": model.generate(ids, use_cache=False, **greedy),
        }
    tensors["gradient"] = checkpointed_gradient(model, ids, enabled=False)
    tensors["checkpointed gradient"] = checkpointed_gradient(model, ids, enabled=True)
    return (
        tensors,
        {
            "config": f"{type(config).__module__}.{type(config).__name__}",
            "model": f"{type(model).__module__}.{type(model).__name__}",
            "decoder": f"{type(decoder).__module__}.{type(decoder).__name__}",
            "dtype": str(model.dtype),
            "attention": [model.config._attn_implementation, eager.config._attn_implementation],
        },
        model,
    )


def main():
    request = json.load(sys.stdin)
    if request["package"]:
        import optimum_moreau  # noqa: F401
    else:  # a bare environment: what a stranger has
        present = {name for name in ("optimum_moreau", "optimum", "peft", "accelerate") if find_spec(name)}
        assert not present, present
    torch.set_num_threads(1)
    results = Path(request["results"])
    for name, case in request["folders"].items():
        remote = {"trust_remote_code": True} if case["remote_code"] else {}
        tensors, words, model = look(case["folder"], **remote)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, results / f"{name}.safetensors")
        (results / f"{name}.json").write_text(json.dumps(words))
        model.save_pretrained(results / f"{name}-again")


if __name__ == "__main__":
    main()
