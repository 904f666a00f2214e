"""2:4 masks in PyTorch's semi-structured tensors: whether a masked model packs, and what its products take on CUDA.

    python benchmarks/semi_structured.py [--size 110M] [--rows 4096] [--rounds 20]

Everywhere: masks a random LLaMA by magnitude and checks every matrix. On CUDA of compute capability 8.0 and above it
also times x·Wᵀ, dense and semi-structured by turns, float16, medians, of each shape of matrix in the model.
"""

import argparse
import statistics

import torch
from engine import SIZES, build

from optimum_moreau import MoreauPrunerConfig
from optimum_moreau.masks.semi_structured import check_semi_structured
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.models.units import model_shape


def milliseconds(action):
    """Of one run on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def compare(w, rows, rounds):
    """Medians of dense and semi-structured, in ms."""
    x = torch.randn(rows, w.shape[1], dtype=w.dtype, device=w.device)
    weights = {"dense": w, "2:4": torch.sparse.to_sparse_semi_structured(w)}
    taken = {name: [] for name in weights}
    for turn in range(rounds + 3):
        for name, weight in weights.items():
            found = milliseconds(lambda weight=weight: torch.nn.functional.linear(x, weight))
            if turn >= 3:  # the first ones warm up
                taken[name].append(found)
    return [statistics.median(taken[name]) for name in weights]


def main():
    """Prints a count, and on CUDA a table."""
    parser = argparse.ArgumentParser(description="2:4 masks in semi-structured tensors.")
    parser.add_argument("--size", default="110M", choices=SIZES)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build(args.size, "float16", device)
    config = MoreauPrunerConfig(criterion="magnitude", pattern="2:4").resolve(model.config)
    found = sparsify(model, model_shape(model), None, config)
    print(f"{check_semi_structured(model, found)} of {len(found.matrices)} matrices pack and unpack ({device})")
    if device == "cpu" or torch.cuda.get_device_capability() < (8, 0):
        print("no CUDA of compute capability 8.0 or above here: nothing to time")
        return
    print(f"| shape, {args.rows} rows | dense, ms | 2:4, ms | speed-up |\n|---|---:|---:|---:|")
    layer = model.model.layers[0]
    for name in dict.fromkeys(one.name.split(".", 2)[2] for one in found.matrices):
        w = layer.get_submodule(name).weight.detach()
        dense, sparse = compare(w, args.rows, args.rounds)
        print(f"| {name} {tuple(w.shape)} | {dense:.3f} | {sparse:.3f} | {dense / sparse:.2f}× |")


if __name__ == "__main__":
    main()
