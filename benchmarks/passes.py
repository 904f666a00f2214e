"""What a preset takes of a real model, in forward passes over the text that it reads.

    python benchmarks/passes.py [--model smollm2-135m] [--presets fast best] [--rounds 2] [--shared ../shared]

`pass`: the model's forward pass over all of these windows, with their logits. `streams`: two passes over those that are
fitted, through the decoder layers alone, which is what the dense and the pruned stream cannot do without. Each is
measured in turns with the steps of the preset, at 20 % of the parameters, without loading and saving. Seconds and
ratios are means of the rounds, of ratios with their deviation. Scoring reads the text, and the compensation's seconds
hold the losses that decide whether it stays.
"""

from __future__ import annotations

import json
import statistics
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from texts import SHARED, subjects

from optimum_moreau import MoreauPruner, MoreauPrunerConfig
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.loading import load_model, load_tokenizer

BATCH = 10


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """How long something takes, and what it gives."""
    start = time.perf_counter()
    found = action()
    return time.perf_counter() - start, found


@torch.no_grad()
def forward(model: Any, windows: torch.Tensor) -> None:
    """A pass of a model or its decoder."""
    for batch in windows.split(BATCH):
        model(input_ids=batch, use_cache=False)


def measured(model: Any, pruner: MoreauPruner, text: list[str]) -> dict[str, float]:
    """Seconds of each step and of the passes, of one round."""
    run = pruner.prepare(model, text)
    scored, read = run.scored, run.fitted or run.scored
    assert scored is not None and read is not None  # both presets read text
    found = {"pass": seconds(lambda: forward(model, read.tokens))[0]}
    found["scoring"], (plan, _) = seconds(lambda: pruner.plan(model, text))
    if run.parts is None:
        return found
    fitted = torch.cat(run.parts.folds)
    found["streams"] = 2 * seconds(lambda: forward(model.model, fitted))[0]

    def compensate() -> None:
        with compensated(model, run.shape, plan, run.parts, run.config, undone=True):
            pass

    found["compensation"] = seconds(compensate)[0]
    return found


def ratios(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Means of the rounds: of the seconds, and of what is over the passes of the same round."""
    each = [
        one
        | {"over_pass": (one["scoring"] + one.get("compensation", 0)) / one["pass"]}
        | ({"over_streams": one["compensation"] / one["streams"]} if "streams" in one else {})
        for one in rounds
    ]
    found: dict[str, Any] = {}
    for name in each[0]:
        values = [one[name] for one in each]
        found[name] = round(statistics.mean(values), 2)
        if name.startswith("over") and len(values) > 1:
            found[f"{name}_deviation"] = round(statistics.stdev(values), 2)
    return found


def main() -> None:
    """Prints a line of JSON for each preset."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--presets", nargs="*", default=["fast", "best"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shared", type=Path, default=SHARED)
    a = parser.parse_args()
    subject = subjects(a.shared)[a.model]
    text, tokenizer = subject.documents()[0], load_tokenizer(str(subject.folder))
    model = load_model(str(subject.folder), device="cpu").eval()
    forward(model, torch.zeros((1, 8), dtype=torch.int64))  # what a first pass makes once
    for preset in a.presets:
        pruner = MoreauPruner(MoreauPrunerConfig.preset(preset, pruning_ratio=0.2), tokenizer=tokenizer)
        rounds = [measured(model, pruner, text) for _ in range(a.rounds)]
        row = {"part": "presets", "model": a.model, "protocol": f"{torch.get_num_threads()} threads", "row": preset}
        print(json.dumps(row | ratios(rounds)), flush=True)


if __name__ == "__main__":
    main()
