"""Does llama.cpp compute what transformers computes? Perplexity of pruned models in both, on llama.cpp's own tokens.

    python benchmarks/llama_cpp.py --source llama.cpp --binaries llama.cpp/build/bin [--shared ../shared]

Each model is pruned with `--runtime llama.cpp`, converted by llama.cpp's own converter, and read by its
`llama-perplexity` (chunks of n tokens, BOS in place of each one's first, counted from its middle on). The tokens are
those of `llama-tokenize`, since a tokenizer without a sentencepiece file is converted only approximately.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.data.sources import read_documents

LENGTH = 128  # tokens per chunk
CUTS = {
    "dense": None,
    "20 % of heads and channels": {"pruning_ratio": 0.2, "runtime": "llama.cpp"},
    "20 % of hidden channels": {"pruning_ratio": 0.2, "targets": ("hidden",)},
    "20 % of layers": {"pruning_ratio": 0.2, "targets": ("layers",)},
}


def run(*command):
    """What a program prints; raises if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout + done.stderr


@torch.no_grad()
def perplexity(model, tokens, bos):
    """llama-perplexity's protocol, in transformers."""
    total = count = 0
    for start in range(0, len(tokens) - LENGTH + 1, LENGTH):
        window = torch.tensor([bos, *tokens[start + 1 : start + LENGTH]])
        log_p = model(window[None]).logits[0].float().log_softmax(-1)
        seen = range(LENGTH // 2, LENGTH - 1)
        total -= sum(log_p[i, window[i + 1]].item() for i in seen)
        count += len(seen)
    return math.exp(total / count)


def main():
    """Prints a table, a row a cut."""
    parser = argparse.ArgumentParser(description="Perplexity in llama.cpp and in transformers.")
    parser.add_argument("--source", type=Path, required=True, help="of llama.cpp, with convert_hf_to_gguf.py")
    parser.add_argument("--binaries", type=Path, required=True, help="with llama-perplexity and llama-tokenize")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    args = parser.parse_args()
    folder = args.shared / "models" / "stories260K"
    stories = read_documents(args.shared / "data" / "tinystories_1k.jsonl")
    print("| stories260K | model type | llama.cpp | transformers |\n|---|---|---:|---:|")
    with tempfile.TemporaryDirectory() as work:
        text, gguf = Path(work) / "text.txt", Path(work) / "model.gguf"
        text.write_text("\n".join(stories[800:860]), encoding="utf-8")
        for i, (name, settings) in enumerate(CUTS.items()):
            model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            saved = folder
            if settings:
                saved = Path(work) / f"pruned-{i}"
                pruner = MoreauPruner(MoreauPrunerConfig(criterion="taylor", **settings), tokenizer=tokenizer)
                pruner.prune(model, stories[:800])
                pruner.save_pretrained(saved)
            convert = args.source / "convert_hf_to_gguf.py"
            run(sys.executable, convert, saved, "--outfile", gguf, "--outtype", "f32")
            printed = run(args.binaries / "llama-tokenize", "-m", gguf, "-f", text, "--ids", "--log-disable")
            tokens = json.loads(re.search(r"\[[\d, ]+\]", printed)[0])
            told = run(args.binaries / "llama-perplexity", "-m", gguf, "-f", text, "-c", LENGTH, "-b", LENGTH, "-t", 1)
            theirs = float(re.search(r"PPL = ([\d.]+)", told)[1])
            ours = perplexity(model.eval(), tokens, tokenizer.bos_token_id)
            print(f"| {name} | {model.config.model_type} | {theirs:.4f} | {ours:.4f} |", flush=True)


if __name__ == "__main__":
    main()
