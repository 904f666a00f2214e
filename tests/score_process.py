"""Run as a script, alone or by torchrun: scores a model as FOLDER/request.json says, and writes what came of it."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.envelope import State, state
from optimum_moreau.models.memory import reset_peak_memory, resident_bytes
from optimum_moreau.models.units import model_shape
from optimum_moreau.scoring.scores import score_units
from tests.tiny import tiny_model

M_MMAP_THRESHOLD = -3  # of <malloc.h>
LARGE = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_key_value_heads": 8}


def main():
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    model = tiny_model("llama", **({"num_hidden_layers": 6, "head_dim": 64, **LARGE} if request.get("memory") else {}))
    tokens = windows()
    if request.get("memory"):
        measure(folder, model, tokens, config_for(model, request["criteria"][0], request))
        return
    if request.get("die"):
        die_in(**request["die"])
    checkpoint = folder / "steps" if request.get("checkpoint") else None
    for criterion in request["criteria"]:
        pruner = MoreauPruner(config_for(model, criterion, request))
        plan, scores = pruner.plan(model, tokens, checkpoint_dir=checkpoint)
        plan.save(folder / f"plan-{criterion}-{rank}.json")
        scores.save(folder / f"scores-{criterion}-{rank}.safetensors")
    if dist.is_initialized():
        dist.destroy_process_group()


def windows():
    return torch.randint(0, 64, (5, 16), generator=torch.Generator().manual_seed(0))


def die_in(where, call):
    """Kills this process in the given call of `State.put` (in the middle of a step) or `_flush` (while it is kept)."""
    owner = State if where == "put" else state
    original, calls = getattr(owner, where), []

    def fatal(*args):
        calls.append(0)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, where, fatal)


def config_for(model, criterion, request):
    changes = {"steps": request["steps"]} if criterion.startswith("moreau") else {}
    changes |= {"passes": 3} if criterion == "smoothgrad" else {}
    depth = model.config.num_hidden_layers
    config = MoreauPrunerConfig(
        criterion=criterion,
        unit_ratio=0.5,
        attention_layers=(0, depth),
        mlp_layers=(0, depth),
        sequence_length=16,
        calibration_samples=5,
        offload=request.get("offload"),
        batch_size=request.get("batch_size"),
        reduction=request.get("reduction", "gradient"),
        **changes,
    )
    return config.resolve(model.config)


def measure(folder, model, tokens, config):
    """Peak of resident memory above the loaded model; a small run first, for the libraries' own buffers."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # what is freed is given back at once
    small = tiny_model("llama")
    score_units(small, model_shape(small), tokens, MoreauPrunerConfig(criterion="taylor").resolve(small.config))
    shape = model_shape(model)
    names = {name for block in shape.in_scope(config) for name in block.weight_names().values()}
    reset_peak_memory()
    before = resident_bytes()
    score_units(model, shape, tokens, config)
    found = {
        "peak_above_model": resident_bytes(peak=True) - before,
        "scope_bytes": sum(4 * model.get_parameter(name).numel() for name in names),
    }
    (folder / "memory.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
