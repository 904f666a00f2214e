"""Run as a script in a fresh process: loads one model, measures it, and writes what it found.

Reads a JSON request from standard input: path (the parent's, so that the same packages are imported), folder, dtype,
device, trust_remote_code, threads, batch_sizes, prompt_tokens, new_tokens, repeats, weights (files), result (file).
"""

from __future__ import annotations

import inspect
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Loads, measures, writes."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    from optimum_moreau.errors import MoreauError

    try:
        found = measure(request)
    except MoreauError as error:
        sys.exit(" ".join(str(error).split()))
    Path(request["result"]).write_text(json.dumps(found), encoding="utf-8")


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Loads the model and measures it; values by metric, those of a batch size in its order."""
    import torch

    from optimum_moreau.loading import load_model, load_skeleton
    from optimum_moreau.models.memory import reset_peak_memory, resident_bytes
    from optimum_moreau.models.placement import check_device
    from optimum_moreau.planning import fingerprint

    torch.set_num_threads(request["threads"])
    how = {"dtype": request["dtype"], "trust_remote_code": request["trust_remote_code"]}
    spread = request["device"] == "auto"  # over all GPUs; where there is none, on the CPU
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] if spread else []
    devices = gpus or [check_device("cpu" if spread else request["device"])]
    on_gpu = devices[0].type == "cuda"
    load_skeleton(request["folder"], **how)  # imports the model's code, which is no part of loading weights
    for file in request["weights"]:  # so that every load finds them in memory, whichever model was read last
        with open(file, "rb") as opened:
            while opened.read(2**24):
                pass
    for device in devices if on_gpu else ():
        torch.zeros(1, dtype=torch.float32, device=device)  # CUDA itself is loaded
        torch.cuda.reset_peak_memory_stats(device)
    reset_peak_memory()
    before = resident_bytes()
    start = time.perf_counter()
    model: Any = load_model(request["folder"], device=request["device"], **how).eval()
    model.config.return_dict = True
    _wait(torch)
    loading = time.perf_counter() - start

    generator = torch.Generator("cpu").manual_seed(0)
    sizes = ((batch, request["prompt_tokens"]) for batch in request["batch_sizes"])
    prompts = (torch.randint(0, model.config.vocab_size, size, generator=generator) for size in sizes)
    by_batch = zip(*(_one_batch(torch, model, ids, request) for ids in prompts), strict=True)
    found = dict(zip(("prefill", "decode", "time to first token"), map(list, by_batch), strict=True))
    peak = sum(map(torch.cuda.max_memory_allocated, devices)) if on_gpu else resident_bytes(peak=True) - before
    return {
        **found,
        "fingerprint": fingerprint(model),
        "load time": [loading],
        "peak memory": [max(peak, 1)],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": _device_name(torch, devices, request["threads"]),
    }


def _one_batch(torch: Any, model: Any, ids: Any, request: dict[str, Any]) -> tuple[float, float, float]:
    """Prefill, decode, time to first token: medians of the repeats, after one run that is not counted."""
    from optimum_moreau.models.placement import input_device

    ids = ids.to(input_device(model))
    runs = [_run(torch, model, ids, request["new_tokens"]) for _ in range(1 + request["repeats"])][1:]
    prefill, first, decode = (statistics.median(times) for times in zip(*runs, strict=True))
    return ids.numel() / prefill, len(ids) * request["new_tokens"] / decode, 1000 * first


def _run(torch: Any, model: Any, ids: Any, new_tokens: int) -> tuple[float, float, float]:
    """Seconds of the prefill, until the first token is known, and of decoding `new_tokens` more, greedily."""
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad():
        _wait(torch)
        start = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, **last)  # logits (batch, 1, vocabulary)
        _wait(torch)
        prefilled = time.perf_counter()
        token = out.logits[:, -1:].argmax(-1)  # (batch, 1)
        token.tolist()  # where the reader is
        first = time.perf_counter()
        for _ in range(new_tokens):
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, **last)
            token = out.logits[:, -1:].argmax(-1)
        _wait(torch)
        return prefilled - start, first - start, time.perf_counter() - first


def _wait(torch: Any) -> None:
    """Until every GPU has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)


def _device_name(torch: Any, devices: Any, threads: int) -> str:
    if devices[0].type != "cuda":
        return f"{devices[0].type}, {platform.machine()}, {threads} thread{'s' * (threads != 1)}"
    name = torch.cuda.get_device_name(devices[0])
    return name if len(devices) == 1 else f"{len(devices)} × {name}"


if __name__ == "__main__":
    main()
