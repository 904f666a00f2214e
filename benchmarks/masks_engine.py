"""Time and memory of masking, beside bare forward passes over the same tokens, on a random LLaMA.

    python benchmarks/masks_engine.py [--size 110M] [--samples 64] [--length 128] [--rounds 3]

In turns, in one process: forward passes over all windows (hidden states only, in batches of ten), and masking by each
case; medians, and ratios of the medians. Memory is resident memory above the loaded model at its peak, in a process of
its own for each case, beside what one decoder layer weighs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from engine import SIZES, VOCABULARY, build

CASES = {
    "wanda": {"criterion": "wanda", "feed_forward": False},
    "wanda, fed forward": {"criterion": "wanda"},
    "wanda, dsnot, fed forward": {"criterion": "wanda", "refine": "dsnot"},
    "ria, fed forward": {"criterion": "ria"},
    "sparsegpt, fed forward": {"criterion": "sparsegpt"},
}
BATCH = 10


def prepare(size, samples, length):
    """A model and windows."""
    import torch

    torch.manual_seed(0)
    return build(size, "float32", "cpu"), torch.randint(VOCABULARY, (samples, length))


def mask(model, tokens, case):
    """Masks half of every matrix; the model is changed."""
    from optimum_moreau import MoreauPrunerConfig
    from optimum_moreau.masks.sparsify import sparsify
    from optimum_moreau.models.units import model_shape

    config = MoreauPrunerConfig(pattern="unstructured", batch_size=BATCH, **CASES[case]).resolve(model.config)
    sparsify(model, model_shape(model), tokens, config)


def bare(model, tokens):
    """Forward passes through all decoder layers."""
    import torch

    with torch.no_grad():
        for batch in tokens.split(BATCH):
            model.model(input_ids=batch, use_cache=False)


def memory(size, samples, length, case):
    """Peak above the loaded model, in bytes, of a case or of bare passes."""
    from optimum_moreau.models.memory import reset_peak_memory, resident_bytes

    model, tokens = prepare(size, samples, length)
    bare(model, tokens[:1])  # what a first pass allocates once
    reset_peak_memory()
    before = resident_bytes()
    bare(model, tokens) if case == "bare" else mask(model, tokens, case)
    layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    print(json.dumps({"peak": resident_bytes(peak=True) - before, "layer": layer}))


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description="Time and memory of masking.")
    parser.add_argument("--size", default="110M", choices=SIZES)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    where = (args.size, args.samples, args.length)
    if args.memory:
        memory(*where, args.memory)
        return
    model, tokens = prepare(*where)
    seconds = {name: [] for name in ("bare", *CASES)}
    for _ in range(args.rounds):
        for name, found in seconds.items():
            start = time.perf_counter()
            bare(model, tokens) if name == "bare" else mask(model, tokens, name)
            found.append(time.perf_counter() - start)
    print(f"| {args.size}, {args.samples} × {args.length} tokens | seconds | / bare | peak, MiB | layers |")
    print("|---|---:|---:|---:|---:|")
    for name, found in seconds.items():
        given = [str(value) for pair in zip(("--size", "--samples", "--length"), where, strict=True) for value in pair]
        done = subprocess.run([sys.executable, __file__, *given, "--memory", name], capture_output=True, text=True)
        taken = json.loads(done.stdout)
        median, base = statistics.median(found), statistics.median(seconds["bare"])
        peak = taken["peak"]
        print(
            f"| {name} | {median:.1f} | {median / base:.2f} | {peak / 2**20:.0f} | {peak / taken['layer']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
