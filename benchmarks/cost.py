"""Time and memory of scoring, of masks and of a refit, beside bare passes of the same model on the same tokens.

    python benchmarks/cost.py scoring|masks|compensation|semi-structured [--sizes 25M 110M …] [--cases NAME …]
        [--dtypes float32 bfloat16] [--steps 10] [--samples N] [--length 128] [--rounds 3] [--device cpu] [--trim]

The models are random LLaMAs. Seconds are medians of runs in turns, in one process. Memory is what is held above the
loaded model at its peak, each in a process of its own.

scoring: every layer in scope, one micro-batch a step, beside a bare forward and backward pass with the gradients of
every parameter, and the oracle (envelope/reference.py). `activations` is the peak of bare passes that drop each
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
import gc
import json
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_moreau import MoreauPrunerConfig, PruningPlan
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.config.settings import settings_of
from optimum_moreau.envelope import LossGradient, Noise, moreau_gradient, scoring_mode
from optimum_moreau.estimate import estimate_scoring, skeleton_of
from optimum_moreau.estimate.forwards import Alive
from optimum_moreau.masks.semi_structured import check_semi_structured
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.models.memory import reset_peak_memory, resident_bytes
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.registry import CRITERIA
from optimum_moreau.scoring.scores import UnitSums, score_units

SIZES = {  # hidden size, MLP, layers, heads
    "25M": (512, 1376, 6, 8),
    "110M": (768, 2048, 12, 12),
    "350M": (1024, 2816, 24, 16),
    "1B": (2048, 5632, 22, 32),
    "7B": (4096, 11008, 32, 32),
}
VOCABULARY, BATCH, MIB = 8192, 10, 2**20
SCORING = {
    "moreau": {"criterion": "moreau"},
    "moreau, disk": {"criterion": "moreau", "offload": "disk"},
    "moreau, bfloat16 state": {"criterion": "moreau", "state_dtype": "bfloat16"},
    "moreau-gs": {"criterion": "moreau-gs"},
    "smoothgrad": {"criterion": "smoothgrad"},
    "taylor": {"criterion": "taylor"},
    "taylor-second": {"criterion": "taylor-second"},
}
MASKS = {
    "wanda": {"criterion": "wanda", "feed_forward": False},
    "wanda, fed forward": {"criterion": "wanda"},
    "wanda, dsnot, fed forward": {"criterion": "wanda", "refine": "dsnot"},
    "ria, fed forward": {"criterion": "ria"},
    "sparsegpt, fed forward": {"criterion": "sparsegpt"},
}


class Work:
    """A random model, its shape, and windows.

    Args:
        a: what was asked for; says size, dtype, device, samples and length.
    """

    def __init__(self, a: Namespace) -> None:
        torch.manual_seed(0)
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        config = AutoConfig.for_model(
            "llama", vocab_size=VOCABULARY, tie_word_embeddings=False, **dict(zip(names, SIZES[a.size], strict=True))
        )
        with torch.device(a.device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, a.dtype)).eval()
        self.shape, self.config = model_shape(self.model), config
        self.tokens = torch.randint(VOCABULARY, (a.samples, a.length))
        self.layer_bytes = sum(p.numel() * p.element_size() for p in self.model.model.layers[0].parameters())

    def resolved(self, **fields: Any) -> MoreauPrunerConfig:
        """A config with every layer in scope."""
        scope = dict.fromkeys(("attention_layers", "mlp_layers"), (0, self.config.num_hidden_layers))
        return MoreauPrunerConfig(**scope, **fields).resolve(self.config)

    @cached_property
    def plan(self) -> PruningPlan:
        """20 % by magnitude, to be refitted."""
        config = self.resolved(criterion="magnitude", compensation="refit", batch_size=BATCH)
        return make_plan(self.score(config), self.shape, config)

    def score(self, config: MoreauPrunerConfig, windows: int | None = None) -> Any:
        """Scores by a config, on so many windows."""
        return score_units(self.model, self.shape, self.tokens[:windows], config)


def scoring_config(work: Work, a: Namespace) -> MoreauPrunerConfig:
    """The config of a case."""
    own = {one.name for one in settings_of(CRITERIA.get(SCORING[a.case]["criterion"]))}
    few = dict.fromkeys(own & {"steps", "passes"}, a.steps)
    batch = {"batch_size": a.samples, "calibration_samples": a.samples, "sequence_length": a.length}
    return work.resolved(**SCORING[a.case], **few, **batch)


def timed(actions: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 0) -> dict[str, list[float]]:
    """Seconds of each action, in turns, after some that warm up."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for turn in range(warm + rounds):
        for name, action in actions.items():
            wait()
            start = time.perf_counter()
            action()
            wait()
            if turn >= warm:
                found[name].append(time.perf_counter() - start)
    return found


def medians(actions: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 0) -> dict[str, float]:
    """Of the seconds of each action."""
    return {name: statistics.median(found) for name, found in timed(actions, rounds, warm).items()}


def peak_of(action: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes above what is held before, at the peak."""
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


def apart(measure: Callable[[Namespace], dict[str, Any]], a: Namespace) -> dict[str, Any]:
    """Measures in a process of its own, where nothing else has allocated."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, a).result()


# Scoring


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
    model, config, ids = work.model, scoring_config(work, a), work.tokens.to(a.device)

    def bare() -> None:
        model.requires_grad_(True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    def oracle() -> None:
        names = {name for block in work.shape.in_scope(config) for name in block.weight_names().values()}
        with scoring_mode(model), torch.no_grad():
            weights = {name: model.get_parameter(name) for name in names}
            criterion = work.resolved(criterion="moreau", rho=0.05, step_size=1e-3).criterion  # it knows absolute steps
            steps = {"rho": criterion.rho, "step_size": criterion.step_size, "steps": a.steps}
            gradient = LossGradient(model, [work.tokens])
            found = moreau_gradient(gradient, weights, noise=Noise(criterion.sigma), **steps)
            sums = UnitSums(work.shape.scored(config))
            for name, g in found.items():
                sums.add(name, (g * weights[name].float()).abs_())
            sums.combined(criterion.aggregation)

    actions = {"bare": bare, "engine": lambda: work.score(config)}
    actions |= {"oracle": oracle} if a.case == "moreau" and a.device == "cpu" else {}
    several = a.steps if a.case.startswith(("moreau", "smooth")) else 1
    found = timed(actions, a.rounds, warm=1)
    found |= {name: [taken / several for taken in found[name]] for name in found if name != "bare"}
    median = {name: statistics.median(values) for name, values in found.items()}
    to_bare, to_oracle = (
        [mine / other for mine, other in zip(found["engine"], found.get(name, ()), strict=False)]
        for name in ("bare", "oracle")
    )
    return {
        "step": median["engine"],
        "bare": median["bare"],
        "step / bare": statistics.median(to_bare),
        "±": (max(to_bare) - min(to_bare)) / 2,
        "oracle": median.get("oracle"),
        "step / oracle": statistics.median(to_oracle) if to_oracle else None,
    }


def warm_up(a: Namespace) -> None:
    """The libraries' own buffers and imports."""
    small = Work(Namespace(**{**vars(a), "size": "25M", "samples": 1, "length": 16}))
    small.score(small.resolved(criterion="taylor"))


def scoring_memory(a: Namespace) -> dict[str, Any]:
    """Bytes: the peak of scoring, the weights in scope, a layer; and the estimate over the measured."""
    work = Work(a)
    config = scoring_config(work, a)
    estimate = estimate_scoring(skeleton_of(work.model), work.shape, config, a.device)
    warm_up(a)
    peak = peak_of(lambda: work.score(config), a.device)
    names = {name for block in work.shape.scored(config) for name in block.weight_names().values()}
    scope = sum(work.model.get_parameter(name).numel() for name in names)
    state = getattr(torch, getattr(config.criterion, "state_dtype", "float32")).itemsize
    measured = estimate.peak_memory_bytes / (estimate.model_bytes + peak)
    return {"peak": peak, "scope": state * scope, "layer": work.layer_bytes, "estimate": measured}


def activations(a: Namespace) -> dict[str, Any]:
    """Bytes at the peak of bare passes that drop every weight's gradient as soon as it is there."""
    work = Work(a)
    model = work.model.requires_grad_(False)
    for name in {name for block in work.shape.blocks for name in block.weight_names().values()}:
        weight = model.get_parameter(name).requires_grad_()
        weight.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    ids = work.tokens[: 1 if a.case == "taylor-second" else None].to(a.device)
    warm_up(a)

    def passes() -> None:
        for _ in range(2):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return {"bare": peak_of(passes, a.device)}


# Masks


def mask_actions(work: Work, cases: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """Forward passes through all decoder layers, and the masking of half of every matrix, which changes the model."""

    def bare() -> None:
        with torch.no_grad():
            for batch in work.tokens.split(BATCH):
                work.model.model(input_ids=batch, use_cache=False)

    def mask(case: str) -> None:
        config = work.resolved(pattern="unstructured", batch_size=BATCH, **MASKS[case])
        sparsify(work.model, work.shape, work.tokens, config)

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


# Compensation


def refit(work: Work, windows: int | None = None) -> None:
    """Refits every layer; afterwards the model is as it was."""
    config = MoreauPrunerConfig.from_dict(work.plan.config).resolve(work.config)
    with compensated(work.model, work.shape, work.plan, work.tokens[:windows], config, undone=True):
        pass


def compensation(a: Namespace) -> Iterator[dict[str, Any]]:
    """A row for scoring by moreau on the paper's ten windows, and one for the refit."""
    work = Work(a)
    actions = {"moreau": partial(work.score, work.resolved(criterion="moreau"), 10), "refit": partial(refit, work)}
    seconds = medians(actions, a.rounds)
    memory = {f"{name}, MiB": value / MIB for name, value in apart(refit_memory, a).items()}
    for name, taken in seconds.items():
        row = {"size": a.size, "case": name, "seconds": taken, "/ moreau": taken / seconds["moreau"]}
        yield row | (memory if name == "refit" else dict.fromkeys(memory))


def refit_memory(a: Namespace) -> dict[str, Any]:
    """Bytes at the peak, and what they are compared with."""
    work, (hidden, mlp, _, heads) = Work(a), SIZES[a.size]
    refit(work, 1)  # what a first pass allocates once
    peak = peak_of(lambda: refit(work))
    streams = 2 * a.length * hidden * 4  # of a window
    kept = [len(work.plan.layers[0]["attention"].kept) * hidden // heads, len(work.plan.layers[0]["mlp"].kept)]
    few = min(2 * BATCH, a.samples)
    with Alive() as alive:
        refit(work, few)
    return {
        "peak": peak,
        "streams": streams * a.samples,
        "peak without them": peak - streams * a.samples,
        "tensors alive": alive.most - streams * few,
        "two layers' Gram matrices": 2 * 8 * sum(width**2 for width in kept),
        "one batch": BATCH * a.length * 4 * (3 * mlp + 6 * hidden),  # what a layer holds at once, at most
    }


# Semi-structured tensors


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
