"""Time and memory of a refit, beside scoring with moreau, on a random LLaMA.

    python benchmarks/compensation_engine.py [--size 110M] [--samples 128] [--length 128] [--rounds 3]

In turns, in one process: scoring by moreau on the paper's 10 windows, and the refit of a plan of 20 % on all windows,
in batches of ten; medians, and their ratio. Memory is resident memory above the loaded model at its peak, in a process
of its own, with and without the two streams of hidden states; beside it the tensors that were alive at once, made since
the model was there, without the streams (two batches of windows); what the Gram matrices of two layers take in float64;
and the activations of one batch in one layer.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from engine import SIZES, VOCABULARY, build

BATCH = 10


def prepare(size, samples, length):
    """A model, its shape, a plan by magnitude with its config, and windows."""
    import torch

    from optimum_moreau import MoreauPrunerConfig
    from optimum_moreau.models.units import model_shape
    from optimum_moreau.planning import make_plan
    from optimum_moreau.scoring.scores import score_units

    torch.manual_seed(0)
    model = build(size, "float32", "cpu")
    shape = model_shape(model)
    depth = (0, model.config.num_hidden_layers)
    config = MoreauPrunerConfig(
        criterion="magnitude", compensation="refit", batch_size=BATCH, attention_layers=depth, mlp_layers=depth
    ).resolve(model.config)
    plan = make_plan(score_units(model, shape, None, config), shape, config)
    return model, shape, plan, config, torch.randint(VOCABULARY, (samples, length))


def score(model, shape, tokens):
    """Scores all layers by moreau, on ten windows."""
    from optimum_moreau import MoreauPrunerConfig
    from optimum_moreau.scoring.scores import score_units

    depth = (0, model.config.num_hidden_layers)
    config = MoreauPrunerConfig(criterion="moreau", attention_layers=depth, mlp_layers=depth).resolve(model.config)
    score_units(model, shape, tokens[:10], config)


def refit(model, shape, plan, config, tokens):
    """Refits every layer; afterwards the model is as it was."""
    from optimum_moreau.compensation.compensate import compensated

    with compensated(model, shape, plan, tokens, config, undone=True):
        pass


def memory(size, samples, length):
    """Prints the peak above the loaded model, and what it is compared with, in bytes."""
    from optimum_moreau.estimate.forwards import Alive
    from optimum_moreau.models.memory import reset_peak_memory, resident_bytes

    model, shape, plan, config, tokens = prepare(size, samples, length)
    refit(model, shape, plan, config, tokens[:1])  # what a first pass allocates once
    reset_peak_memory()
    before = resident_bytes()
    refit(model, shape, plan, config, tokens)
    peak = resident_bytes(peak=True) - before
    head = model.config.hidden_size // model.config.num_attention_heads
    kept = {
        "attention": len(plan.layers[0]["attention"].kept) * head * shape.blocks[0].n_rep,
        "mlp": len(plan.layers[0]["mlp"].kept),
    }
    few = tokens[: 2 * BATCH]
    with Alive() as alive:
        refit(model, shape, plan, config, few)
    wide = 3 * model.config.intermediate_size + 6 * model.config.hidden_size  # what a layer holds at once, at most
    found = {
        "peak": peak,
        "streams": 2 * samples * length * model.config.hidden_size * 4,
        "alive": alive.most - 2 * len(few) * length * model.config.hidden_size * 4,
        "grams": 2 * 8 * sum(width**2 for width in kept.values()),
        "batch": BATCH * length * wide * 4,
    }
    print(json.dumps(found))


def main():
    """Prints two tables."""
    parser = argparse.ArgumentParser(description="Time and memory of a refit.")
    parser.add_argument("--size", default="110M", choices=SIZES)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    where = (args.size, args.samples, args.length)
    if args.memory:
        memory(*where)
        return
    model, shape, plan, config, tokens = prepare(*where)
    seconds = {"moreau": [], "refit": []}
    for _ in range(args.rounds):
        for name, found in seconds.items():
            start = time.perf_counter()
            score(model, shape, tokens) if name == "moreau" else refit(model, shape, plan, config, tokens)
            found.append(time.perf_counter() - start)
    del model
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"| {args.size}, {args.samples} × {args.length} tokens | seconds | / moreau |\n|---|---:|---:|")
    for name, median in medians.items():
        print(f"| {name} | {median:.1f} | {median / medians['moreau']:.2f} |", flush=True)
    given = [str(value) for pair in zip(("--size", "--samples", "--length"), where, strict=True) for value in pair]
    done = subprocess.run([sys.executable, __file__, *given, "--memory"], capture_output=True, text=True, check=True)
    mebibytes = {name: count / 2**20 for name, count in json.loads(done.stdout).items()}
    print("\n| MiB | peak | streams | peak without them | tensors alive | two layers' Gram matrices | one batch |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    rest = mebibytes["peak"] - mebibytes["streams"]
    cells = (
        *(mebibytes[name] for name in ("peak", "streams")),
        rest,
        *(mebibytes[name] for name in ("alive", "grams", "batch")),
    )
    print(f"| refit | {' | '.join(f'{cell:.0f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
