"""Time and memory of scoring, of masks and of a refit, beside bare passes of the same model on the same tokens.

    python benchmarks/cost.py scoring|masks|compensation|semi-structured [--sizes 25M 110M …] [--cases NAME …]

The models are random LLaMAs, every layer in scope. Seconds are medians of runs in turns, in one process. Memory is what
is held above the loaded model at its peak, in a process of its own; --trim makes the C library give back the blocks
that it frees, which it else keeps. results/cost.md says what the columns are.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_moreau import MoreauPrunerConfig, PruningPlan
from optimum_moreau.compensation.compensate import compensated
from optimum_moreau.config.settings import settings_of
from optimum_moreau.data.parts import parted
from optimum_moreau.envelope import LossGradient, Noise, scoring_mode
from optimum_moreau.estimate import estimate_scoring, skeleton_of
from optimum_moreau.estimate.forwards import Alive
from optimum_moreau.masks.semi_structured import check_semi_structured
from optimum_moreau.masks.sparsify import sparsify
from optimum_moreau.models.memory import reset_peak_memory, resident_bytes
from optimum_moreau.models.units import Block, model_shape
from optimum_moreau.planning import make_plan
from optimum_moreau.registry import CRITERIA
from optimum_moreau.scoring.scores import UnitSums, score_units

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.envelope.oracle import moreau_gradient

DIMENSIONS = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
SIZES = {
    "25M": (512, 1376, 6, 8),
    "110M": (768, 2048, 12, 12),
    "350M": (1024, 2816, 24, 16),
    "1B": (2048, 5632, 22, 32),
    "7B": (4096, 11008, 32, 32),
}
VOCABULARY, BATCH, MIB = 8192, 10, 2**20
Row = dict[str, Any]
SCORING = {  # name, which begins with the criterion → settings
    **{name: {} for name in ("moreau", "moreau-gs", "smoothgrad", "taylor", "taylor-second")},
    "moreau, disk": {"offload": "disk"},
    "moreau, bfloat16 state": {"state_dtype": "bfloat16"},
}
MASKS = {
    "wanda": {"feed_forward": False},
    "wanda, fed forward": {},
    "wanda, dsnot, fed forward": {"refine": "dsnot"},
    "ria, fed forward": {},
    "sparsegpt, fed forward": {},
}


class Work:
    """A random model, its shape, and windows: of the size, dtype, device, samples and length that are asked for."""

    def __init__(self, a: Namespace) -> None:
        torch.manual_seed(0)
        sizes = zip(DIMENSIONS, SIZES[a.size], strict=True)
        self.config = AutoConfig.for_model("llama", tie_word_embeddings=False, vocab_size=VOCABULARY, **dict(sizes))
        with torch.device(a.device):
            self.model = AutoModelForCausalLM.from_config(self.config, dtype=getattr(torch, a.dtype)).eval()
        self.shape = model_shape(self.model)
        self.tokens = torch.randint(VOCABULARY, (a.samples, a.length))
        self.layer_bytes = sum(p.nbytes for p in self.model.model.layers[0].parameters())

    def resolved(self, **fields: Any) -> MoreauPrunerConfig:
        """A config with every layer in scope."""
        scope = dict.fromkeys(("attention_layers", "mlp_layers"), (0, self.config.num_hidden_layers))
        return MoreauPrunerConfig(**scope, **fields).resolve(self.config)

    def weights(self, blocks: Iterable[Block]) -> dict[str, torch.nn.Parameter]:
        """The weights of blocks."""
        names = (name for block in blocks for name in block.weight_names().values())
        return {name: self.model.get_parameter(name) for name in names}

    def score(self, config: MoreauPrunerConfig, windows: int | None = None) -> Any:
        """Scores by a config, on so many windows."""
        return score_units(self.model, self.shape, self.tokens[:windows], config)


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
            found[name] += [time.perf_counter() - start] * (turn >= warm)
    return found


def medians(actions: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 0) -> dict[str, float]:
    """Of the seconds of each action."""
    return {name: statistics.median(found) for name, found in timed(actions, rounds, warm).items()}


def peak_of(action: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes above what is held before, at the peak."""
    gc.collect()
    cuda = device == "cuda"
    held = torch.cuda.memory_allocated if cuda else resident_bytes
    most = torch.cuda.max_memory_allocated if cuda else partial(resident_bytes, peak=True)
    before = held()
    (torch.cuda.reset_peak_memory_stats if cuda else reset_peak_memory)()
    action()
    return most() - before


def apart(measure: Callable[[Namespace], Row], a: Namespace) -> Row:
    """Measures in a process of its own, where nothing else has allocated."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, a).result()


def warm(a: Namespace) -> Work:
    """A model, after the libraries' own buffers and imports."""
    small = Work(Namespace(**{**vars(a), "size": "25M", "samples": 1, "length": 16}))
    small.score(small.resolved(criterion="taylor"))
    return Work(a)


def scored_by(work: Work, a: Namespace) -> MoreauPrunerConfig:
    """The config of a case of scoring, in one micro-batch."""
    criterion = a.case.partition(",")[0]
    few = {one.name for one in settings_of(CRITERIA.get(criterion))} & {"steps", "passes"}
    windows = {"calibration_samples": a.samples, "batch_size": a.samples, "sequence_length": a.length}
    return work.resolved(criterion=criterion, **SCORING[a.case], **dict.fromkeys(few, a.steps), **windows)


def scoring(a: Namespace) -> Iterator[Row]:
    """A row for each dtype and case; `activations` is the peak of bare passes that drop each gradient at once."""
    if a.trim:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    cases = product(a.dtypes, a.cases or ["moreau"])
    for a.dtype, a.case in cases:
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


def scoring_time(a: Namespace) -> Row:
    """Seconds per step of the engine, of a bare pass, and of the oracle, in turns."""
    work = Work(a)
    model, config, ids = work.model, scored_by(work, a), work.tokens.to(a.device)

    def bare() -> None:
        model.requires_grad_(True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    def oracle() -> None:
        with scoring_mode(model), torch.no_grad():
            weights = work.weights(work.shape.in_scope(config))
            steps = {"rho": 0.05, "step_size": 1e-3, "steps": a.steps}  # it knows absolute ones only
            found = moreau_gradient(LossGradient(model, [work.tokens]), weights, noise=Noise(0.05), **steps)
            sums = UnitSums(work.shape.scored(config))
            for name, g in found.items():
                sums.add(name, (g * weights[name].float()).abs_())
            sums.combined(config.criterion.aggregation)

    actions = {"bare": bare, "engine": partial(work.score, config)}
    actions |= {"oracle": oracle} if a.case == "moreau" and a.device == "cpu" else {}
    several = a.steps if a.case.startswith(("moreau", "smooth")) else 1
    found = timed(actions, a.rounds, warm=1)
    found |= {name: [taken / several for taken in found[name]] for name in actions if name != "bare"}
    row: Row = {"step": statistics.median(found["engine"])}
    for name in ("bare", "oracle"):
        ratios = [mine / other for mine, other in zip(found["engine"], found.get(name, ()), strict=False)]
        values = (found[name], ratios, [(max(ratios) - min(ratios)) / 2]) if ratios else ()
        keys = name, f"step / {name}", f"±, {name}"
        row |= dict.fromkeys(keys) | dict(zip(keys, map(statistics.median, values), strict=False))
    return row


def scoring_memory(a: Namespace) -> Row:
    """Bytes: the peak of scoring, the weights in scope, a layer; and the estimate over the measured."""
    work = warm(a)
    config = scored_by(work, a)
    estimate = estimate_scoring(skeleton_of(work.model), work.shape, config, a.device)
    peak = peak_of(lambda: work.score(config), a.device)
    size = getattr(torch, getattr(config.criterion, "state_dtype", "float32")).itemsize
    scope = size * sum(weight.numel() for weight in work.weights(work.shape.scored(config)).values())
    ratio = estimate.peak_memory_bytes / (estimate.model_bytes + peak)
    return {"peak": peak, "scope": scope, "layer": work.layer_bytes, "estimate": ratio}


def activations(a: Namespace) -> Row:
    """Bytes at the peak of bare passes that drop every weight's gradient as soon as it is there."""
    work = warm(a)
    model = work.model.requires_grad_(False)
    for weight in work.weights(work.shape.blocks).values():
        weight.requires_grad_().register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
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


def masks(a: Namespace) -> Iterator[Row]:
    """A row for bare passes, and for each case."""
    seconds = medians(mask_actions(Work(a), a.cases or MASKS), a.rounds)
    for a.case, taken in seconds.items():
        memory = apart(mask_memory, a)
        yield {"size": a.size, "case": a.case, "seconds": taken, "/ bare": taken / seconds["bare"], **memory}


def mask_memory(a: Namespace) -> Row:
    """The peak of a case or of bare passes, also in layers."""
    work = Work(a)
    with torch.no_grad():
        work.model.model(input_ids=work.tokens[:1], use_cache=False)  # what a first pass allocates once
    peak = peak_of(mask_actions(work, MASKS)[a.case])
    return {"peak, MiB": peak / MIB, "layers": peak / work.layer_bytes}


def refitted(work: Work) -> tuple[PruningPlan, Callable[..., int]]:
    """A plan of 20 % by magnitude, and what refits it, leaves the model as it was, and says on how many windows."""
    config = work.resolved(criterion="magnitude", compensation="refit", batch_size=BATCH)
    plan = make_plan(work.score(config), work.shape, config)

    def refit(windows: int | None = None) -> int:
        parts = parted(work.tokens[:windows], config.compensation.apart)
        with compensated(work.model, work.shape, plan, parts, config, undone=True):
            return parts.fitted

    return plan, refit


def compensation(a: Namespace) -> Iterator[Row]:
    """A row for scoring by moreau on the paper's ten windows, and one for the refit."""
    work = Work(a)
    score = partial(work.score, work.resolved(criterion="moreau"), 10)
    seconds = medians({"moreau": score, "refit": refitted(work)[1]}, a.rounds)
    memory = {f"{name}, MiB": value / MIB for name, value in apart(refit_memory, a).items()}
    for name, taken in seconds.items():
        row = {"size": a.size, "case": name, "seconds": taken, "/ moreau": taken / seconds["moreau"]}
        yield row | (memory if name == "refit" else dict.fromkeys(memory))


def refit_memory(a: Namespace) -> Row:
    """Bytes at the peak, and what they are compared with."""
    work, (hidden, mlp, _, heads) = Work(a), SIZES[a.size]
    plan, refit = refitted(work)
    refit(3)  # what a first pass allocates once
    peak = peak_of(refit)
    streams = 2 * a.length * hidden * 4  # of a window
    kept = [len(plan.layers[0]["attention"].kept) * hidden // heads, len(plan.layers[0]["mlp"].kept)]
    with Alive() as alive:
        few = refit(min(2 * BATCH, a.samples))
    fitted = parted(work.tokens, work.resolved(compensation="refit").compensation.apart).fitted
    return {
        "peak": peak,
        "streams": streams * fitted,
        "peak without them": peak - streams * fitted,
        "tensors alive": alive.most - streams * few,
        "two layers' Gram matrices": 2 * 8 * sum(width**2 for width in kept),
        "one batch": BATCH * a.length * 4 * (3 * mlp + 6 * hidden),  # what a layer holds at once, at most
    }


def semi_structured(a: Namespace) -> Iterator[Row]:
    """A row for each shape of matrix: how many of all pack, and on CUDA of 8.0 and above what x·Wᵀ takes, in ms."""
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
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
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
    for wrong in set(a.cases or ()) - set(cases):
        parser.error(f"--cases: {wrong} is no case of {a.what}")
    a.samples, a.dtype = a.samples or samples, "float32"
    for number, row in enumerate(row for a.size in a.sizes or sizes for row in rows(a)):
        if not number and not a.json:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        cells = ["" if one is None else one if isinstance(one, str) else f"{one:.2f}" for one in row.values()]
        print(json.dumps(row, ensure_ascii=False) if a.json else f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
