"""Time and memory of scoring, of masks and of a refit, beside bare passes of the same model on the same tokens.

    python benchmarks/cost.py scoring|masks|compensation|semi-structured [--sizes 25M 110M …] [--cases NAME …]
        [--dtypes float32 bfloat16] [--steps 10] [--samples N] [--length 128] [--rounds 3] [--device cpu] [--trim]

The models are random LLaMAs. Seconds are medians of runs in turns, in one process. Memory is what is held above the
loaded model at its peak, each in a process of its own.

scoring: every layer in scope, one micro-batch a step, beside a bare forward and backward pass with the gradients of
every parameter, and the oracle (tests/envelope/oracle.py). `activations` is the peak of bare passes that drop each
weight's gradient at once; what is left is given over the weights in scope in the state's dtype, and over a layer. Where
the C library keeps freed blocks, the peak is more than what is held: --trim makes it give them back (memory only).
masks: half of every matrix goes, beside forward passes through the layers. `layers` is the peak over a layer.
compensation: the refit of a plan of 20 % on all windows, beside scoring by moreau on ten; its peak, what the two
streams of hidden states take, the tensors that were alive at once (of two batches, without the streams), the Gram
matrices of two layers in float64, and one batch's activations in a layer.
semi-structured: whether 2:4 masks pack in PyTorch's semi-structured tensors, and on CUDA of compute capability 8.0 and
above what x·Wᵀ takes, dense and packed, for as many rows as there are tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from work import SIZES, Work, apart, medians, names_of, peak_of, timed, warm

from optimum_moreau import MoreauPrunerConfig, PruningPlan
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.config.settings import settings_of
from optimum_moreau.envelope import LossGradient, Noise, scoring_mode
from optimum_moreau.estimate import estimate_scoring, skeleton_of
from optimum_moreau.estimate.forwards import Alive
from optimum_moreau.masks.semi_structured import check_semi_structured
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.planning import make_plan
from optimum_moreau.registry import CRITERIA
from optimum_moreau.scoring.scores import UnitSums

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.envelope.oracle import moreau_gradient

BATCH, MIB = 10, 2**20
SCORING = {  # name, which begins with the criterion → settings
    "moreau": {},
    "moreau, disk": {"offload": "disk"},
    "moreau, bfloat16 state": {"state_dtype": "bfloat16"},
    "moreau-gs": {},
    "smoothgrad": {},
    "taylor": {},
    "taylor-second": {},
}
MASKS = {
    "wanda": {"feed_forward": False},
    "wanda, fed forward": {},
    "wanda, dsnot, fed forward": {"refine": "dsnot"},
    "ria, fed forward": {},
    "sparsegpt, fed forward": {},
}


def scored_by(work: Work, a: Namespace) -> MoreauPrunerConfig:
    """The config of a case of scoring, in one micro-batch."""
    criterion = a.case.partition(",")[0]
    few = {one.name for one in settings_of(CRITERIA.get(criterion))} & {"steps", "passes"}
    fields = {**SCORING[a.case], **dict.fromkeys(few, a.steps), "batch_size": a.samples}
    return work.resolved(criterion=criterion, calibration_samples=a.samples, sequence_length=a.length, **fields)


def scoring(a: Namespace) -> Iterator[dict[str, Any]]:
    """A row for each dtype and case."""
    if a.trim:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    for dtype, case in product(a.dtypes, a.cases or ["moreau"]):
        a.dtype, a.case = dtype, case
        times = {} if a.trim else apart(scoring_time, a)
        memory = apart(scoring_memory, a) | apart(activations, a)
        over = memory["peak"] - memory["bare"]
        yield {"size": a.size, "case": a.case, "dtype": a.dtype, **times} | {
            "above the model, MiB": memory["peak"] / MIB,
            "activations, MiB": memory["bare"] / MIB,
            "over scope": over / memory["scope"],
            "layers": over / memory["layer"],
            "estimate / measured": memory["estimate"],
        }


def scoring_time(a: Namespace) -> dict[str, Any]:
    """Seconds per step of the engine, of a bare pass, and of the oracle, in turns."""
    work = Work(a)
    model, config, ids = work.model, scored_by(work, a), work.tokens.to(a.device)

    def bare() -> None:
        model.requires_grad_(True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    def oracle() -> None:
        with scoring_mode(model), torch.no_grad():
            weights = {name: model.get_parameter(name) for name in names_of(work.shape.in_scope(config))}
            steps = {"rho": 0.05, "step_size": 1e-3, "steps": a.steps}  # it knows absolute ones only
            found = moreau_gradient(LossGradient(model, [work.tokens]), weights, noise=Noise(0.05), **steps)
            sums = UnitSums(work.shape.scored(config))
            for name, g in found.items():
                sums.add(name, (g * weights[name].float()).abs_())
            sums.combined(config.criterion.aggregation)

    actions = {"bare": bare, "engine": lambda: work.score(config)}
    actions |= {"oracle": oracle} if a.case == "moreau" and a.device == "cpu" else {}
    several = a.steps if a.case.startswith(("moreau", "smooth")) else 1
    found = timed(actions, a.rounds, warm=1)
    found |= {name: [taken / several for taken in found[name]] for name in found if name != "bare"}
    row: dict[str, Any] = {"step": statistics.median(found["engine"])}
    for name in ("bare", "oracle"):
        ratios = [mine / other for mine, other in zip(found["engine"], found.get(name, ()), strict=False)]
        row[name] = statistics.median(found[name]) if ratios else None
        row[f"step / {name}"] = statistics.median(ratios) if ratios else None
        row[f"±, {name}"] = (max(ratios) - min(ratios)) / 2 if ratios else None
    return row


def scoring_memory(a: Namespace) -> dict[str, Any]:
    """Bytes: the peak of scoring, the weights in scope, a layer; and the estimate over the measured."""
    work = warm(a)
    config = scored_by(work, a)
    estimate = estimate_scoring(skeleton_of(work.model), work.shape, config, a.device)
    peak = peak_of(lambda: work.score(config), a.device)
    state = getattr(torch, getattr(config.criterion, "state_dtype", "float32")).itemsize
    scope = state * sum(work.model.get_parameter(name).numel() for name in names_of(work.shape.scored(config)))
    measured = estimate.peak_memory_bytes / (estimate.model_bytes + peak)
    return {"peak": peak, "scope": scope, "layer": work.layer_bytes, "estimate": measured}


def activations(a: Namespace) -> dict[str, Any]:
    """Bytes at the peak of bare passes that drop every weight's gradient as soon as it is there."""
    work = warm(a)
    model = work.model.requires_grad_(False)
    for name in names_of(work.shape.blocks):
        weight = model.get_parameter(name).requires_grad_()
        weight.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    ids = work.tokens[: 1 if a.case == "taylor-second" else None].to(a.device)
    run = partial(model, input_ids=ids, labels=ids, use_cache=False)
    return {"bare": peak_of(lambda: [run().loss.backward() for _ in range(2)], a.device)}


def mask_actions(work: Work, cases: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """Forward passes through all decoder layers, and the masking of half of every matrix, which changes the model."""

    def bare() -> None:
        with torch.no_grad():
            for batch in work.tokens.split(BATCH):
                work.model.model(input_ids=batch, use_cache=False)

    def mask(case: str) -> None:
        fields = {"criterion": case.partition(",")[0], "pattern": "unstructured", "batch_size": BATCH, **MASKS[case]}
        sparsify(work.model, work.shape, work.tokens, work.resolved(**fields))

    return {"bare": bare} | {case: partial(mask, case) for case in cases}


def masks(a: Namespace) -> Iterator[dict[str, Any]]:
    """A row for bare passes, and for each case."""
    seconds = medians(mask_actions(Work(a), a.cases or MASKS), a.rounds)
    for a.case, taken in seconds.items():
        row = {"size": a.size, "case": a.case, "seconds": taken, "/ bare": taken / seconds["bare"]}
        yield row | apart(mask_memory, a)


def mask_memory(a: Namespace) -> dict[str, Any]:
    """The peak of a case or of bare passes, also in layers."""
    work = Work(a)
    actions = mask_actions(work, MASKS)
    with torch.no_grad():
        work.model.model(input_ids=work.tokens[:1], use_cache=False)  # what a first pass allocates once
    peak = peak_of(actions[a.case])
    return {"peak, MiB": peak / MIB, "layers": peak / work.layer_bytes}


def planned(work: Work) -> tuple[PruningPlan, MoreauPrunerConfig]:
    """20 % by magnitude, to be refitted."""
    config = work.resolved(criterion="magnitude", compensation="refit", batch_size=BATCH)
    return make_plan(work.score(config), work.shape, config), config


def refit(work: Work, plan: PruningPlan, config: MoreauPrunerConfig, windows: int | None = None) -> None:
    """Refits every layer; afterwards the model is as it was."""
    with compensated(work.model, work.shape, plan, work.tokens[:windows], config, undone=True):
        pass


def compensation(a: Namespace) -> Iterator[dict[str, Any]]:
    """A row for scoring by moreau on the paper's ten windows, and one for the refit."""
    work = Work(a)
    moreau = partial(work.score, work.resolved(criterion="moreau"), 10)
    seconds = medians({"moreau": moreau, "refit": partial(refit, work, *planned(work))}, a.rounds)
    memory = {f"{name}, MiB": value / MIB for name, value in apart(refit_memory, a).items()}
    for name, taken in seconds.items():
        row = {"size": a.size, "case": name, "seconds": taken, "/ moreau": taken / seconds["moreau"]}
        yield row | (memory if name == "refit" else dict.fromkeys(memory))


def refit_memory(a: Namespace) -> dict[str, Any]:
    """Bytes at the peak, and what they are compared with."""
    work, (hidden, mlp, _, heads) = Work(a), SIZES[a.size]
    plan, config = planned(work)
    refit(work, plan, config, 1)  # what a first pass allocates once
    peak = peak_of(lambda: refit(work, plan, config))
    streams = 2 * a.length * hidden * 4  # of a window
    kept = [len(plan.layers[0]["attention"].kept) * hidden // heads, len(plan.layers[0]["mlp"].kept)]
    few = min(2 * BATCH, a.samples)
    with Alive() as alive:
        refit(work, plan, config, few)
    return {
        "peak": peak,
        "streams": streams * a.samples,
        "peak without them": peak - streams * a.samples,
        "tensors alive": alive.most - streams * few,
        "two layers' Gram matrices": 2 * 8 * sum(width**2 for width in kept),
        "one batch": BATCH * a.length * 4 * (3 * mlp + 6 * hidden),  # what a layer holds at once, at most
    }


def semi_structured(a: Namespace) -> Iterator[dict[str, Any]]:
    """A row for each shape of matrix: how many of all pack, and where there is a device for it, milliseconds."""
    a.dtype, a.device = "float16", "cuda" if torch.cuda.is_available() else "cpu"
    work = Work(a)
    found = sparsify(work.model, work.shape, None, work.resolved(criterion="magnitude", pattern="2:4"))
    packed = f"{check_semi_structured(work.model, found)} of {len(found.matrices)}"
    for name in dict.fromkeys(one.name.split(".", 2)[2] for one in found.matrices):
        w = work.model.model.layers[0].get_submodule(name).weight.detach()
        row = {"matrix": f"{name} {tuple(w.shape)}", "packed": packed}
        if a.device == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
            x = torch.randn(a.samples * a.length, w.shape[1], dtype=w.dtype, device=w.device)
            weights = {"dense, ms": w, "2:4, ms": torch.sparse.to_sparse_semi_structured(w)}
            products = {which: partial(torch.nn.functional.linear, x, one) for which, one in weights.items()}
            dense, sparse = (1e3 * taken for taken in medians(products, a.rounds, warm=3).values())
            row |= {"dense, ms": dense, "2:4, ms": sparse, "speed-up": dense / sparse}
        yield row


MEASURES = {  # what → its rows, sizes, cases and windows
    "scoring": (scoring, ["25M", "110M", "350M"], SCORING, 10),
    "masks": (masks, ["110M"], MASKS, 64),
    "compensation": (compensation, ["110M"], {}, 128),
    "semi-structured": (semi_structured, ["110M"], {}, 32),
}


def main() -> None:
    """Measures, and prints each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--sizes", nargs="*", choices=SIZES)
    parser.add_argument("--cases", nargs="*", choices=SCORING | MASKS)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=10, help="of a Moreau criterion")
    parser.add_argument("--samples", type=int, help="windows")
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trim", action="store_true", help="memory only, with freed blocks given back")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row, instead of a table")
    a = parser.parse_args()
    rows, sizes, cases, samples = MEASURES[a.what]
    if wrong := [case for case in a.cases or () if case not in cases]:
        parser.error(f"--cases: {wrong[0]} is no case of {a.what}")
    a.samples, a.dtype, head = a.samples or samples, "float32", not a.json
    for size in a.sizes or sizes:
        a.size = size
        for row in rows(a):
            if head:
                print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
                head = False
            cells = ["" if one is None else one if isinstance(one, str) else f"{one:.2f}" for one in row.values()]
            print(json.dumps(row, ensure_ascii=False) if a.json else f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
