"""Run as a script with an older transformers: reads saved folders as anyone would, and writes what it found.

Reads a JSON request from standard input: `folders`, `prompts`, `tokens` (a list of ids) and `results` (a file).
"""

import json
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

transformers.logging.set_verbosity_error()


def main():
    request = json.load(sys.stdin)
    assert transformers.__version__ == request["version"], transformers.__version__
    torch.set_num_threads(1)
    logits, words = {}, {}
    for name, case in request["folders"].items():
        model = AutoModelForCausalLM.from_pretrained(case["folder"], dtype="auto", attn_implementation="eager").eval()
        with torch.no_grad():
            for length in case["lengths"]:
                ids = torch.tensor([request["tokens"][:length]])
                logits[f"{name} {length}"] = model(ids, use_cache=False).logits.float()
        words[name] = {"dtype": str(model.dtype)}
        if case["tokenizer"]:
            tokenizer = AutoTokenizer.from_pretrained(case["folder"])
            words[name] |= {
                "ids": [tokenizer(prompt)["input_ids"] for prompt in request["prompts"]],
                "special": sorted(tokenizer.all_special_tokens),
                "chat": tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False),
                "plain": tokenizer.decode(tokenizer("<s> a <tool> b")["input_ids"], skip_special_tokens=True),
            }
    save_file(logits, request["results"])
    json.dump(words, sys.stdout)


if __name__ == "__main__":
    main()
