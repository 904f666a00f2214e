"""What each step adds to the quality of a pruned model, untuned: criterion × compensation × budget × rounds.

    python benchmarks/quality.py [--shared ../shared] [--models NAME …] [--shares 0.2 0.3 0.5] [--rows NAME …]
        [--seeds 5] [--segments 200] [--recover STEPS] [--output quality.json]

20 % of the parameters go in the default scope, 30 and 50 % in all layers. A seed draws the windows; `closed` is the
share of the gap between `taylor` without compensation and the dense model, in perplexity, that a row closes; the
seconds are of scoring, compensation and cut. Rows and shares of one scope that differ only in what comes after scoring
are planned from the same scores, made once, and each counts the seconds of making them. With --recover every model is
tuned afterwards (LoRA on the text that was calibrated on, 16 × 128 tokens a step), and measured again; its seconds are
of the training. Runs that the output holds already are not repeated, and the tables are of all that it holds: with
`--output docs/quality-runs.json` only what that lacks is measured. A run is known by its model, row, share and seed;
take another output for other --segments. A test compares the tables of docs/results.md and README with the runs.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import time
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from optimum_moreau import MoreauPruner, MoreauPrunerConfig, RecoveryConfig, perplexity
from optimum_moreau.compensation.biases import make_counted_plan
from optimum_moreau.config import BEST
from optimum_moreau.config.settings import deciding
from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.models.units import model_shape
from optimum_moreau.surgery.export import with_export
from results import SUBJECTS

REFIT = {"compensation": "refit"}
MANY = {"reduction": "importance", "calibration_samples": 400}
SEARCH = {**REFIT, **MANY, "budget": "search"}
WANDA = {"criterion": "wanda", "calibration_samples": 128, **REFIT}
# The first rows change one thing at a time, from LLM-Pruner's Taylor to the preset; the others try what else there is.
ROWS = {
    "taylor": {},
    "+ refit": {**REFIT},
    "+ importances of 400 samples": {**REFIT, **MANY},
    "+ search": {**SEARCH},
    "+ wanda for taylor": {**BEST},  # the preset
    "moreau-gs": {"criterion": "moreau-gs"},
    "moreau": {"criterion": "moreau"},
    "moreau, refit": {"criterion": "moreau", **REFIT},
    "moreau, 2 steps, importances of 200 samples, refit, search": {
        "criterion": "moreau",
        "steps": 2,
        **SEARCH,
        "calibration_samples": 200,
    },
    "magnitude, refit": {"criterion": "magnitude", **REFIT},
    "wanda, 128 samples": {**WANDA, "compensation": "none"},
    "wanda, 128 samples, refit": {**WANDA},
    "wanda, 128 samples, refit, search": {**WANDA, "budget": "search"},
    "wanda, refit, global": {**BEST, "budget": "global"},
    "wanda, refit, 3 rounds": {**BEST, "budget": "uniform", "rounds": 3},
    "gblm, 128 samples, refit": {**WANDA, "criterion": "gblm"},
    "gblm, 128 samples, refit, search": {**WANDA, "criterion": "gblm", "budget": "search"},
    "ria, 128 samples, refit": {**WANDA, "criterion": "ria"},
    "symwanda-relative, 128 samples, refit": {**WANDA, "criterion": "symwanda-relative"},
    "sparsegpt, 128 samples, refit": {**WANDA, "criterion": "sparsegpt"},
    "scale": {"compensation": "scale"},
    "scale and shift": {"compensation": "scale", "intercept": True},
    "bias": {"compensation": "bias"},
    "refit with intercept": {**REFIT, "intercept": True},
    "importances of 400 samples alone": {**MANY},
    "search alone": {"budget": "search"},
    "refit, importances, global": {**SEARCH, "budget": "global"},
    "refit, importances, cosine": {**SEARCH, "budget": "cosine"},
    "refit, importances, owl": {**SEARCH, "budget": "owl"},
    "refit, importances, zscore": {**SEARCH, "budget": "zscore"},
    "refit, importances, search, 1 % protected": {**SEARCH, "protect": 0.01},
    "refit on 512 windows, importances, search": {**SEARCH, "compensation_samples": 512},
    "refit, importances, 3 rounds": {**REFIT, **MANY, "rounds": 3},
    "refit, importances, 3 linear rounds": {**REFIT, **MANY, "rounds": 3, "schedule": "linear"},
}
STEPS = ("taylor", "+ refit", "+ importances of 400 samples", "+ search", "+ wanda for taylor")  # up to the preset
RECOVERED = (*STEPS, "moreau, refit")  # rows of docs/results.md with --recover
SHARES = (0.2, 0.3, 0.5)


def tuned(row, steps):
    """The name of a row's runs after recovery."""
    return f"{row}; {steps} steps of LoRA"


def recovery(steps, seed):
    """How a pruned model is tuned."""
    return RecoveryConfig(
        max_steps=steps,
        batch_size=16,
        micro_batch_size=16,
        learning_rate=1e-3,
        sequence_length=128,
        validation=0.0,
        save_steps=steps,
        seed=seed,
    )


def scope(share, depth):
    """Which layers may be cut."""
    return {} if share <= 0.2 else {"attention_layers": (0, depth), "mlp_layers": (0, depth)}


def prune(pruner, model, calibration, scored):
    """Prunes in place, from scores that are there already if they are; returns the seconds of all of it."""
    config = pruner.config.resolve(model.config)
    decides = deciding(config, "elements", "scores", "scope")
    if config.rounds > 1:
        decides = config.to_dict()
    elif config.budget.measured:
        decides["budget"] = config.budget.name
    key = json.dumps(decides, default=str)
    start = time.perf_counter()
    if key not in scored:
        _, scores = pruner.plan(model, calibration)
        scored[key] = scores, time.perf_counter() - start
        start = time.perf_counter()
    scores, seconds = scored[key]
    shape = model_shape(model)
    plan = with_export(make_counted_plan(model, shape, scores, config), model.config, shape)
    pruner.apply(model, plan, calibration)
    return seconds + time.perf_counter() - start


def measure(subject, arguments, known):
    """Yields every run of one model that is not known yet: key, perplexity, seconds."""
    folder = str(arguments.shared / "models" / subject.model)
    tokenizer = load_tokenizer(folder)
    calibration, evaluation = subject.documents(arguments.shared)
    settings = {"max_segments": arguments.segments}
    dense = (subject.model, "dense", 0.0, 0)
    if dense not in known:
        yield dense, perplexity(load_model(folder, device="cpu"), tokenizer, evaluation, **settings).perplexity, 0.0
    todo = []
    for row, share, seed in itertools.product(arguments.rows, arguments.shares, range(arguments.seeds)):
        key = (subject.model, row, share, seed)
        after = (subject.model, tuned(row, arguments.recover), share, seed) if arguments.recover else None
        if key not in known or (after and after not in known):
            todo.append((key, after))
    scored = {}
    for key, after in tqdm(todo, desc=subject.model):
        _, row, share, seed = key
        model = load_model(folder, device="cpu")
        given = {"criterion": "taylor", **ROWS[row], **scope(share, model.config.num_hidden_layers)}
        pruner = MoreauPruner(MoreauPrunerConfig(pruning_ratio=share, seed=seed, **given), tokenizer=tokenizer)
        seconds = prune(pruner, model, calibration, scored)
        if key not in known:
            yield key, perplexity(model, tokenizer, evaluation, **settings).perplexity, seconds
        if after and after not in known:
            training = pruner.recover(calibration, recovery(arguments.recover, seed)).training
            yield after, pruner.evaluate(evaluation, **settings), training["seconds"]


def spread(values):
    """Mean ± standard deviation in words; of a single value, the value."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def drawn(runs, model, row, share):
    """Seed → perplexity and seconds, of every draw that was measured."""
    return {key[3]: found for key, found in runs.items() if key[:3] == (model, row, share)}


def head(model, dense, shares, *beside):
    """The first two lines of a table of one model: each share, and what stands beside it."""
    columns = [column for share in shares for column in (f"{100 * share:.0f} %", *beside)]
    return [f"| {model}, dense {dense:.2f} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]


def table(model, runs, rows, shares):
    """Markdown of one model: rows × shares, mean ± deviation over the draws, and the share of the gap closed."""
    dense = runs[model, "dense", 0.0, 0][0]
    lines = head(model, dense, shares, "closed", "seconds")
    for row in rows:
        cells = []
        for share in shares:
            found, base = (drawn(runs, model, wanted, share).values() for wanted in (row, "taylor"))
            if not found or not base:
                cells += ["", "", ""]
                continue
            values = [value for value, _ in found]
            start = statistics.mean(value for value, _ in base)
            closed = (start - statistics.mean(values)) / (start - dense)
            seconds = statistics.median(seconds for _, seconds in found)
            cells += [spread(values), f"{100 * closed:.0f} %", f"{seconds:.1f}"]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def recovery_table(model, runs, rows, shares, steps):
    """Markdown of one model: rows × shares, untuned and recovered, of the draws that were recovered."""
    lines = head(model, runs[model, "dense", 0.0, 0][0], shares, "recovered")
    for row in rows:
        cells = []
        for share in shares:
            before, after = (drawn(runs, model, name, share) for name in (row, tuned(row, steps)))
            cells += [spread([found[seed][0] for seed in after]) if after else "" for found in (before, after)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def read_runs(file):
    """(Model, row, share, seed) → perplexity and seconds, of a file that --output named."""
    return {tuple(one[:4]): (one[4], one[5]) for one in json.loads(file.read_text())}


def main():
    """Measures, writes the runs as JSON, prints the tables."""
    names = [subject.model for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="What each step adds to the quality of a pruned model.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of models and texts")
    parser.add_argument("--models", nargs="*", default=names, choices=names, help="by default all")
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES, help="of the parameters that go")
    parser.add_argument(
        "--rows", nargs="*", default=[*ROWS], choices=[*ROWS], metavar="NAME", help="of ROWS in this file; all"
    )
    parser.add_argument("--seeds", type=int, default=5, help="draws of the windows")
    parser.add_argument("--segments", type=int, default=200, help="of 128 tokens")
    parser.add_argument("--recover", type=int, metavar="STEPS", help="tune afterwards, for so many steps")
    parser.add_argument("--output", type=Path, default=Path("quality.json"), help="of the runs")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum_moreau").setLevel(logging.ERROR)
    runs = read_runs(arguments.output) if arguments.output.is_file() else {}
    steps = [row for row in arguments.rows if row in STEPS]
    others = [row for row in arguments.rows if row not in STEPS]
    for subject in (subject for subject in SUBJECTS if subject.model in arguments.models):
        for key, value, seconds in measure(subject, arguments, runs):
            runs[key] = (round(value, 4), round(seconds, 2))
            lines = (json.dumps([*key, *found]) for key, found in runs.items())
            arguments.output.write_text("[\n" + ",\n".join(lines) + "\n]\n")
        if arguments.recover:
            tables = [recovery_table(subject.model, runs, arguments.rows, arguments.shares, arguments.recover)]
        else:
            tables = [table(subject.model, runs, rows, arguments.shares) for rows in (steps, others) if rows]
        for lines in tables:
            print("\n".join([*lines, ""]), flush=True)


if __name__ == "__main__":
    main()
