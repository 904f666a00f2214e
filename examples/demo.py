"""The main job from start to end: prune a model by 20 % in six ways, compare, save, reload, generate.

Without arguments it needs no network: a tiny LLaMA is trained first (about half a minute) on generated text.

    python examples/demo.py [--model FOLDER_OR_HUB_ID] [--text FILE] [--output demo_output]
"""

import argparse
import logging
import subprocess
import sys
from pathlib import Path

import datasets
import torch
from train_tiny_llama import train
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauError, MoreauPruner, MoreauPrunerConfig, perplexity
from optimum_moreau.data.sources import DEFAULT_TEXT, read_documents
from optimum_moreau.loading import load_model, load_tokenizer

RATIO = 0.2
BEST = "preset best"
# The best settings, and five criteria alone: nothing is adjusted after their cuts.
WAYS = {BEST: MoreauPrunerConfig.best(pruning_ratio=RATIO)} | {
    name: MoreauPrunerConfig(criterion=name, pruning_ratio=RATIO)
    for name in ("moreau-gs", "moreau", "taylor", "magnitude", "random")
}
SEGMENTS = 200  # of 128 tokens, for the perplexities

GENERATE = """
import sys, logging
import optimum_moreau  # the own model types, where the layers differ in shape
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
logging.disable_progress_bar()
folder, prompt = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=32, do_sample=False)[0], skip_special_tokens=True))
"""


def prepare(arguments: argparse.Namespace) -> tuple[str, list[str], list[str], str]:
    """Returns the model, the calibration texts, the evaluation texts and a prompt; trains the tiny model if asked."""
    if arguments.model:
        text = "\n".join(read_documents(arguments.text or DEFAULT_TEXT))
        middle = text.find(" ", len(text) // 2)
        return arguments.model, [text[middle:]], [text[:middle]], " ".join(text.split()[:8])
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one
    folder = arguments.output / "tiny-llama"
    if not (folder / "heldout.jsonl").is_file():
        print("training a tiny LLaMA on generated text …", file=sys.stderr)
        train(folder)
    calibration, heldout = (read_documents(folder / f"{name}.jsonl") for name in ("calibration", "heldout"))
    return str(folder), calibration, heldout, "Anna had"


def main() -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="Prune a model by 20 % in six ways, save, reload, generate.")
    parser.add_argument("--model", help="folder or Hub id (default: a tiny LLaMA that is trained here)")
    parser.add_argument("--text", help="text to calibrate on (second half) and to evaluate on (first half)")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder to write")
    arguments = parser.parse_args()
    if arguments.text and not arguments.model:
        parser.error("--text needs --model: the tiny LLaMA knows its own text only")
    try:
        run(arguments)
    except MoreauError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Trains if needed, prunes in each way, prints the table, saves and reloads the best way's model."""
    name, calibration, heldout, prompt = prepare(arguments)
    tokenizer = load_tokenizer(name)
    dense = perplexity(load_model(name), tokenizer, heldout, max_segments=SEGMENTS)
    before = dense.perplexity
    print(f"\n{name}, {RATIO:.0%} of the parameters removed; perplexity over {dense.protocol}\n")
    print(f"{'':12} {'parameters':>28} {'removed':>8} {'perplexity':>18} {'seconds':>8}")
    for way, config in WAYS.items():
        model = load_model(name)
        pruner = MoreauPruner(config, tokenizer=tokenizer)
        s = pruner.prune(model, calibration).summary
        after = perplexity(model, tokenizer, heldout, max_segments=SEGMENTS).perplexity
        counts = f"{s.parameters_before:,} → {s.parameters_after:,}"
        print(
            f"{way:12} {counts:>28} {s.ratio_achieved:8.2%} {f'{before:.2f} → {after:.2f}':>18} {s.seconds:8.1f}",
            flush=True,
        )
        if way == BEST:
            saved = arguments.output / "pruned"
            verification = pruner.save_pretrained(saved, overwrite=True)
    print(f"\nThat of {BEST} is saved in {saved}; reloaded in a fresh process, its logits differ by at most", end=" ")
    print(f"{verification.max_abs_difference:g}.\nIt says: ", end="", flush=True)
    subprocess.run([sys.executable, "-c", GENERATE, str(saved), prompt], check=True)
    print("\nTo go on (README.md): . .venv/bin/activate; optimum-moreau --help")


if __name__ == "__main__":
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)  # the table says it all
    sys.exit(main())
