"""Time and memory of scoring, beside a bare forward and backward pass of the same model on the same tokens.

    python benchmarks/engine.py [--sizes 25M 110M 350M] [--steps 10] [--dtypes float32 bfloat16] [--cases moreau taylor]
        [--samples 10] [--length 128] [--device cpu] [--json]

Every case is a random LLaMA with every layer in scope and one micro-batch per step. In one process, in turns: the bare
pass (gradients of every parameter), the engine, and the oracle (envelope/reference.py); medians. Memory is resident
memory above the loaded model at its peak, in processes of their own: of scoring, and of bare passes that drop each
weight's gradient at once (`activation_bytes`: activations, same allocator). Where the C library keeps freed blocks,
the peak is more than what is held: `--trim` makes it give them back, which costs time and shows what is held.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIZES = {
    "25M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8},
    "110M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "350M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
VOCABULARY = 8192
# name → criterion and settings
CASES = {
    "moreau": {"criterion": "moreau"},
    "moreau, disk": {"criterion": "moreau", "offload": "disk"},
    "moreau, bfloat16 state": {"criterion": "moreau", "state_dtype": "bfloat16"},
    "moreau-gs": {"criterion": "moreau-gs"},
    "smoothgrad": {"criterion": "smoothgrad"},
    "taylor": {"criterion": "taylor"},
    "taylor-second": {"criterion": "taylor-second"},
}


def build(size, dtype, device):
    """A random model of a size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, tie_word_embeddings=False, **SIZES[size])
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def settings(case, steps, model, samples, length):
    """The resolved config of a case, every layer in scope."""
    from optimum_moreau import MoreauPrunerConfig
    from optimum_moreau.config.settings import settings_of
    from optimum_moreau.registry import CRITERIA as REGISTRY

    depth = model.config.num_hidden_layers
    values = {"attention_layers": (0, depth), "mlp_layers": (0, depth), **CASES[case]}
    own = {one.name for one in settings_of(REGISTRY.get(values["criterion"]))}
    few = {name: steps for name in ("steps", "passes") if name in own}
    batch = {"batch_size": samples, "calibration_samples": samples, "sequence_length": length}
    return MoreauPrunerConfig(**values, **few, **batch).resolve(model.config)


def wait(device):
    """Until the device is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def seconds(action, device):
    """Of one run."""
    wait(device)
    start = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - start


def measure_time(size, case, dtype, steps, samples, length, device, repetitions):
    """Seconds per step of the engine, of a bare pass, and of the oracle, in turns."""
    import torch

    from optimum_moreau.envelope import LossGradient, Noise, moreau_gradient, scoring_mode
    from optimum_moreau.models.units import model_shape
    from optimum_moreau.scoring.scores import UnitSums, score_units

    model = build(size, dtype, device)
    shape = model_shape(model)
    tokens = torch.randint(VOCABULARY, (samples, length))
    config = settings(case, steps, model, samples, length)
    ids = tokens.to(device)

    def bare():
        model.requires_grad_(True)
        for _ in range(2):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad(set_to_none=True)

    def engine():
        score_units(model, shape, tokens, config)

    def oracle():
        names = {name for block in shape.in_scope(config) for name in block.weight_names().values()}
        with scoring_mode(model), torch.no_grad():
            weights = {name: model.get_parameter(name) for name in names}
            gradient = LossGradient(model, [tokens])
            noise = Noise(config.criterion.sigma)
            found = moreau_gradient(
                gradient,
                weights,
                rho=config.criterion.rho,
                step_size=config.criterion.step_size,
                steps=steps,
                noise=noise,
            )
            sums = UnitSums(shape.scored(config))
            for name, g in found.items():
                sums.add(name, (g * weights[name].float()).abs_())
            sums.combined(config.criterion.aggregation)

    found: dict[str, list[float]] = {"bare": [], "engine": [], "oracle": []}
    actions = {"bare": bare, "engine": engine} | ({"oracle": oracle} if case == "moreau" and device == "cpu" else {})
    several = steps if case.startswith(("moreau", "smooth")) else 1
    passes = {"bare": 2, "engine": several, "oracle": several}
    for turn in range(repetitions + 1):
        for name, action in actions.items():
            taken = seconds(action, device) / passes[name]
            if turn:  # the first warms up
                found[name].append(taken)
    median = {name: statistics.median(values) for name, values in found.items() if values}
    ratios, to_oracle = (
        [e / b for e, b in zip(found["engine"], found[other], strict=True)] if found[other] else []
        for other in ("bare", "oracle")
    )
    return {
        "parameters": shape.parameters,
        "step_seconds": median["engine"],
        "bare_seconds": median["bare"],
        "step_over_bare": statistics.median(ratios),
        "spread": max(ratios) - min(ratios),
        "oracle_step_seconds": median.get("oracle"),
        "step_over_oracle": statistics.median(to_oracle) if to_oracle else None,
    }


def measure_memory(size, case, dtype, steps, samples, length, device):
    """Peak memory above the loaded model."""
    import torch

    from optimum_moreau.estimate import estimate_scoring, skeleton_of
    from optimum_moreau.models.units import model_shape
    from optimum_moreau.scoring.scores import score_units

    model = build(size, dtype, device)
    shape = model_shape(model)
    tokens = torch.randint(VOCABULARY, (samples, length))
    config = settings(case, steps, model, samples, length)
    estimate = estimate_scoring(skeleton_of(model), shape, config, device)
    warm_up(dtype, device)
    above = peak_of(lambda: score_units(model, shape, tokens, config), device)
    names = {name for block in shape.scored(config) for name in block.weight_names().values()}
    scope = sum(model.get_parameter(name).numel() for name in names)
    return {
        "above_model_bytes": above,
        "scope_bytes": getattr(torch, config.state_dtype).itemsize * scope,
        "layer_bytes": sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters()),
        "estimated_over_measured": estimate.peak_memory_bytes / (estimate.model_bytes + above),
    }


def measure_activations(size, case, dtype, steps, samples, length, device):
    """Peak memory above the loaded model of bare passes that drop every weight's gradient as soon as it is there."""
    import torch

    from optimum_moreau.models.units import model_shape

    model = build(size, dtype, device).requires_grad_(False)
    for block in model_shape(model).blocks:
        for name in block.weight_names().values():
            weight = model.get_parameter(name).requires_grad_()
            if not weight._post_accumulate_grad_hooks:
                weight.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    ids = torch.randint(VOCABULARY, (1 if case == "taylor-second" else samples, length), device=device)
    warm_up(dtype, device)

    def passes():
        for _ in range(2):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return {"activation_bytes": peak_of(passes, device)}


def warm_up(dtype, device):
    """The libraries' own buffers and imports."""
    import torch

    from optimum_moreau.models.units import model_shape
    from optimum_moreau.scoring.scores import score_units

    small = build("25M", dtype, device)
    score_units(small, model_shape(small), torch.zeros(1, 16, dtype=torch.int64), settings("taylor", 1, small, 1, 16))


def peak_of(action, device):
    """Bytes above what is held before, at the peak."""
    import gc

    import torch

    from optimum_moreau.models.memory import reset_peak_memory, resident_bytes

    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    before = resident_bytes()
    reset_peak_memory()
    action()
    return resident_bytes(peak=True) - before


def main():
    """Runs every case in processes of its own."""
    parser = argparse.ArgumentParser(description="Time and memory of scoring beside a bare pass.")
    parser.add_argument("--sizes", nargs="*", default=["25M", "110M", "350M"], choices=SIZES)
    parser.add_argument("--cases", nargs="*", default=["moreau"], choices=CASES)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--trim", action="store_true", help="memory only, with freed blocks given back")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=["time", "memory", "activations"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    a = arguments
    if a.one:
        common = (a.sizes[0], a.cases[0], a.dtypes[0], a.steps, a.samples, a.length, a.device)
        measure = {"memory": measure_memory, "activations": measure_activations}
        print(json.dumps(measure_time(*common, a.repetitions) if a.one == "time" else measure[a.one](*common)))
        return
    rows = []
    for size in a.sizes:
        for dtype in a.dtypes:
            for case in a.cases:
                row = {"size": size, "case": case, "criterion": CASES[case]["criterion"], "dtype": dtype}
                for one in ("memory", "activations") if a.trim else ("time", "memory", "activations"):
                    flags = ["--sizes", size, "--cases", case, "--dtypes", dtype, "--steps", a.steps, "--one", one]
                    flags += ["--samples", a.samples, "--length", a.length, "--device", a.device]
                    flags += ["--repetitions", a.repetitions]
                    command = [sys.executable, str(Path(__file__)), *map(str, flags)]
                    trim = {"MALLOC_MMAP_THRESHOLD_": "131072"} if a.trim else {}
                    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | trim)
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    row |= json.loads(done.stdout.splitlines()[-1])
                over = row["above_model_bytes"] - row["activation_bytes"]
                row |= {"peak_over_scope": over / row["scope_bytes"], "layers_over": over / row["layer_bytes"]}
                rows.append(row)
                if not a.json:
                    print(line(row), flush=True)
    if a.json:
        print(json.dumps({"machine": f"{platform.machine()}, {platform.processor()}", "rows": rows}, indent=1))


def line(row):
    """One row of the table: names, times, ratios, memory."""
    words = [row["size"], row["case"], row["dtype"]]
    if "step_seconds" in row:
        oracle = row["oracle_step_seconds"]
        words += [f"{row['step_seconds']:.2f}", f"{row['bare_seconds']:.2f}"]
        words += [f"{row['step_over_bare']:.2f} ± {row['spread'] / 2:.2f}"]
        words += [f"{oracle:.2f}", f"{row['step_over_oracle']:.2f}"] if oracle else ["", ""]
    words += [f"{row[key] / 2**20:.0f}" for key in ("above_model_bytes", "activation_bytes")]
    words += [f"{row[key]:.2f}" for key in ("peak_over_scope", "layers_over", "estimated_over_measured")]
    return f"| {' | '.join(words)} |"


if __name__ == "__main__":
    main()
