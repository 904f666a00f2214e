"""Measured against estimated peak memory of scoring, as docs/performance.md has it.

    python benchmarks/estimate.py [--sizes 25M 110M] [--criteria taylor moreau …] [--dtypes float32 bfloat16] [--json]

Each case is a process of its own: it makes a random LLaMA, scores it on random tokens, and compares its peak of
resident memory, above what it held before the model was made, with what `plan --dry-run` foretells.
"""

import argparse
import json
import subprocess
import sys

SIZES = {
    "25M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8},
    "110M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "350M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
}
CRITERIA = ("magnitude", "taylor", "taylor-second", "smoothgrad", "moreau", "moreau-gs")
FEW = {"smoothgrad": {"passes": 2}, "moreau": {"steps": 2}, "moreau-gs": {"steps": 2}}


def measure(size: str, criterion: str, dtype: str) -> dict:
    """Scores one model in this process."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from optimum_moreau import MoreauPrunerConfig
    from optimum_moreau.estimate import estimate_scoring
    from optimum_moreau.scores import score_units
    from optimum_moreau.summary import reset_peak_memory, resident_bytes
    from optimum_moreau.units import model_shape

    config = AutoConfig.for_model("llama", vocab_size=8192, tie_word_embeddings=False, **SIZES[size])
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    settings = MoreauPrunerConfig(criterion=criterion, **FEW.get(criterion, {})).resolve(config)
    shape = model_shape(skeleton)
    estimate = estimate_scoring(skeleton, shape, settings, "cpu")
    torch.ones(512, 512) @ torch.ones(512, 512)  # the library's own buffers
    before = resident_bytes()
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    tokens = torch.randint(8192, (settings.calibration_samples, settings.sequence_length))
    reset_peak_memory()
    score_units(model, model_shape(model), tokens, settings)
    peak = resident_bytes(peak=True) - before
    return {
        "parameters": shape.parameters,
        "criterion": criterion,
        "dtype": dtype,
        "measured_bytes": peak,
        "estimated_bytes": estimate.peak_memory_bytes,
        "estimated_over_measured": estimate.peak_memory_bytes / peak,
    }


def main() -> None:
    """Runs every case and prints a table."""
    parser = argparse.ArgumentParser(description="Measured against estimated peak memory of scoring.")
    parser.add_argument("--sizes", nargs="*", default=["25M", "110M"], choices=SIZES)
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA))
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*arguments.case)))
        return
    rows = []
    for size in arguments.sizes:
        for dtype in arguments.dtypes:
            for criterion in arguments.criteria:
                command = [sys.executable, __file__, "--case", size, criterion, dtype]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append({"size": size, **json.loads(done.stdout.splitlines()[-1])})
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(
        "| model | criterion | dtype | measured MiB | estimated MiB | estimated / measured |\n"
        "|---|---|---|---:|---:|---:|"
    )
    for row in rows:
        measured, estimated = (row[f"{kind}_bytes"] / 2**20 for kind in ("measured", "estimated"))
        words = f"{measured:.0f} | {estimated:.0f} | {row['estimated_over_measured']:.2f}"
        print(f"| {row['size']} | {row['criterion']} | {row['dtype']} | {words} |")


if __name__ == "__main__":
    main()
