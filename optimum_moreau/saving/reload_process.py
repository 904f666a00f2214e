"""Run as a script in a fresh process, without this package: loads a checkpoint and writes its logits on given tokens.

Reads a JSON request from standard input: name (folder or Hub id), remote (revision, trust_remote_code), device (or
auto), threads, attention; the tokens from the working folder, where it writes the logits.
"""

import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    """Loads, computes, writes."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    remote = request["remote"]
    AutoConfig.from_pretrained(request["name"], **remote)
    options = {**remote, "device_map": "auto"} if request["device"] == "auto" else remote
    model = AutoModelForCausalLM.from_pretrained(
        request["name"], dtype="auto", attn_implementation=request["attention"], use_safetensors=True, **options
    )
    model.eval()
    model.config.return_dict = True
    if request["device"] != "auto":
        model.to(request["device"])
    tokens = load_file("tokens.safetensors")["tokens"]
    with torch.no_grad():
        rows = [model(input_ids=row[None].to(model.device), use_cache=False).logits.float().cpu() for row in tokens]
    save_file({"logits": torch.cat(rows)}, "logits.safetensors")


if __name__ == "__main__":
    main()
