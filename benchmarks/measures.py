"""How a run prunes, and what a study measures of the model then; each measure gives further keys of the run's line."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from texts import Subject
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_moreau import MoreauPruner, PruningPlan, RecoveryConfig, apply_plan, load_calibration
from optimum_moreau import perplexity as perplexity_of
from optimum_moreau.config.settings import deciding
from optimum_moreau.evaluation.robustness import robustness as agreements
from optimum_moreau.evaluation.zero_shot import zero_shot
from optimum_moreau.files import read_tensors
from optimum_moreau.loading import load_model
from optimum_moreau.models.units import model_shape
from optimum_moreau.planning import plan_overlap
from optimum_moreau.run.cutting import PruningResult
from optimum_moreau.scoring.profiles import is_outlier

BOS = "paper"  # as all that is kept in results/data was measured


@dataclass
class Measured:
    """A model, and what it is measured on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    subject: Subject
    evaluation: list[str]  # documents to measure on
    segments: int  # of these, at most
    shared: Path  # folder of models and texts

    def perplexity(self, model: PreTrainedModel) -> float:
        """On the study's text and segments."""
        how: Any = {"max_segments": self.segments, "bos": BOS}
        return round(perplexity_of(model, self.tokenizer, self.evaluation, **how).perplexity, 4)


@dataclass
class Pruned(Measured):
    """A model that was pruned, and what it was pruned with."""

    calibration: list[str]  # documents that it was scored on
    pruner: MoreauPruner
    result: PruningResult
    protocol: str
    seed: int | None  # None: not one draw
    earlier: Mapping[int, Any]  # seed → what an earlier draw of this row kept, where the study keeps that

    def dense(self) -> PreTrainedModel:
        """The model before, anew."""
        return load_model(str(self.subject.folder), device=str(self.model.device))

    def plan_of(self, kept: Any) -> PruningPlan:
        """The plan of an earlier draw."""
        values = self.result.plan.to_dict()
        return PruningPlan.from_dict(values | {"layers": kept})


def prune(pruner: MoreauPruner, model: PreTrainedModel, text: Any, made: dict) -> tuple[PruningResult, float]:
    """In place, from scores that another run made, if they serve; returns what was done, and all its seconds."""
    config, scores, before, start = pruner.config.resolve(model.config), None, 0.0, time.perf_counter()
    if config.rounds == 1 and not (config.masks and config.criterion.by_layer):  # else scored as the model changes
        decides = deciding(config, "elements", "scores", "scope")
        if config.masks:
            del decides["mask"]
        else:
            measured = config.budget.measured and [config.budget.name, decides.get("budget")]
            decides["budget"] = [measured or None, config.budget.protect_outliers]
        key = json.dumps(decides, default=str)
        if key not in made:
            if config.masks:
                made.clear()  # the scores of single weights are as large as the model
            found = pruner.element_scores(model, text) if config.masks else pruner.plan(model, text)[1]
            made[key] = found, time.perf_counter() - start
            start = time.perf_counter()
        scores, before = made[key]
    return pruner.prune(model, text, scores=scores), before + time.perf_counter() - start


def recover(pruner: MoreauPruner, text: Any, seed: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """In place: tunes the model that was pruned; the seconds of training."""
    tuning = RecoveryConfig(seed=seed or 0, **{"save_steps": settings["max_steps"], **settings})
    return {"recovery_seconds": round(pruner.recover(text, tuning).training["seconds"], 2)}


def _on(run: Measured, name: str, documents: list[str], **settings: Any) -> dict[str, Any]:
    """Perplexity under a name, and the loss that it is of, in nats a token, under another."""
    found = perplexity_of(run.model, run.tokenizer, documents, bos=BOS, **settings).perplexity
    loss = "loss" if name == "perplexity" else f"{name}_loss"
    return {name: round(found, 4), loss: round(math.log(found), 6)}


def perplexity(run: Measured) -> dict[str, Any]:
    """Of the model, on the study's text and segments."""
    return _on(run, "perplexity", run.evaluation, max_segments=run.segments)


def held_out(run: Measured, text: str, segments: int) -> dict[str, Any]:
    """On another text of the model's, by its name, in segments of 128 tokens, at most so many."""
    return _on(run, text, run.subject.named(text), max_segments=segments)


def long(run: Measured, length: int, segments: int) -> dict[str, Any]:
    """On the study's text in segments of so many tokens, the first so many."""
    return _on(run, "long", run.evaluation, sequence_length=length, max_segments=segments, batch_size=1)


def tasks(run: Measured, limit: int, folder: str, names: list[str]) -> dict[str, Any]:
    """Mean accuracy, in percent, on tasks of a folder, on the first so many questions of each; and task by task."""
    found = zero_shot(run.model, run.tokenizer, names, task_path=run.shared / folder, limit=limit)
    each = {one.task: [round(100 * one.value, 2), round(100 * one.stderr, 2), one.samples] for one in found.tasks}
    return {"tasks": round(100 * found.average, 2), "tasks_stderr": round(100 * found.stderr, 2), "by_task": each}


def zeros(run: Pruned) -> dict[str, Any]:
    """Share of the weights in scope that a mask set to zero."""
    return {"zeros": round(run.result.sparsity.achieved, 4)}


def spread(run: Pruned) -> dict[str, Any]:
    """The shares of their channels that MLPs keep, least and most."""
    found = [len(layer["mlp"].kept) / layer["mlp"].total for layer in run.result.plan.layers.values()]
    return {"mlp_kept": [round(share, 4) for share in (min(found), max(found))]}


def kept(run: Pruned) -> dict[str, Any]:
    """The units that stay, for what compares draws."""
    return {"kept": run.result.plan.to_dict()["layers"]}


def overlap(run: Pruned) -> dict[str, Any]:
    """Jaccard overlap of the units removed, with each earlier draw; the mean over all draws is that over all pairs."""
    pairs = ((run.result.plan, run.plan_of(one)) for one in run.earlier.values())
    return {"overlap": [round(plan_overlap(*pair)["all"].removed, 4) for pair in pairs], **kept(run)}


def exchange(run: Pruned) -> dict[str, Any]:
    """Perplexity of this draw's attention with the MLPs of each earlier one, and of its MLPs with their attention."""
    found = {}
    for seed, one in run.earlier.items():
        mine, other = run.result.plan, run.plan_of(one)
        for name, attention, mlp in (("its MLPs", mine, other), ("its attention", other, mine)):
            layers = {i: {**mlp.layers[i], "attention": attention.layers[i]["attention"]} for i in mlp.layers}
            apply_plan(model := run.dense(), replace(mlp, layers=layers))
            found[f"{name}, draw {seed}"] = run.perplexity(model)
    return {"exchange": found, **kept(run)}


def outliers(run: Pruned) -> dict[str, Any]:
    """How many channels of each layer `protect_outliers` protects, where the protocol has it."""
    most, values = run.pruner.config.budget.protect_outliers, run.result.scores.values
    if most is None:
        return {}
    blocks = [block for block in model_shape(run.dense()).blocks if block.kind == "mlp"]
    return {"outliers": [int(is_outlier(values, block, most).sum()) for block in blocks]}


def moved(run: Pruned) -> dict[str, Any]:
    """‖δ‖/‖w‖ that the steps of a Moreau criterion reach, over all weights in scope."""
    if not run.pruner.config.criterion.resumable():
        return {}
    model, squares = run.dense(), [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        run.pruner.plan(model, run.calibration, checkpoint_dir=folder)
        last = max(Path(folder).glob("delta-*"), key=lambda file: file.stat().st_mtime_ns)
        for name, delta in read_tensors(last, "the state of a Moreau step")[0].items():
            squares[0] += float(delta.float().square().sum())
            squares[1] += float(model.get_parameter(name).detach().float().square().sum())
    return {"moved": round(math.sqrt(squares[0] / squares[1]), 6)}


def bias(run: Pruned) -> dict[str, Any]:
    """Perplexity with the bias b = (W − Ŵ)·E[x] on every matrix, in the order they compute: no mean error is left."""
    dense, config = run.dense(), run.pruner.config
    drawn = {"samples": config.calibration_samples, "sequence_length": config.sequence_length, "seed": run.seed}
    tokens = load_calibration(run.calibration, run.tokenizer, **drawn).tokens
    handles = []
    for name, module in run.model.model.layers.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        seen: list[torch.Tensor] = []
        with module.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0])), torch.no_grad():
            run.model(tokens)
            mean = seen[0].flatten(0, -2).mean(0)
            missing = (dense.model.layers.get_submodule(name).weight - module.weight) @ mean
        handles.append(module.register_forward_hook(lambda _, args, output, missing=missing: output + missing))
    found = run.perplexity(run.model)
    for handle in handles:
        handle.remove()
    return {"biased": found}


def recovery(run: Pruned, **settings: Any) -> dict[str, Any]:
    """In place: tunes the model on the text it was scored on; its perplexity then, and the seconds of training."""
    found = recover(run.pruner, run.calibration, run.seed, settings)
    return {"recovered": run.perplexity(run.model), **found}


def robustness(run: Pruned, draws: int) -> dict[str, Any]:
    """How much plans agree: of two dtypes over so many draws, where the protocol names them; else of these draws."""
    config, dtypes = run.pruner.config, run.protocol.split(" – ") if " – " in run.protocol else []
    text = {"evaluate": run.evaluation, "max_segments": run.segments, "bos": BOS} if dtypes else {}
    asked = {"criteria": [config.criterion.name], "ratios": [config.pruning_ratio], "config": config, **text}
    changes = ",".join([*dtypes, f"seeds:{draws}"])
    found = agreements(run.dense, run.tokenizer, run.calibration, perturbations=changes, **asked)
    one = next(one for one in found if (one.words == run.protocol if dtypes else one.is_draw))
    line = {"kept": one.kept, "kept_deviation": one.kept_deviation}
    line |= {"removed_units": one.removed, "removed_units_deviation": one.removed_deviation}
    line |= {"diff": one.difference} if dtypes else {}
    return {name: round(value, 3) for name, value in line.items()} | {"rank": round(one.rank, 4), "draws": draws}


MEASURES: Mapping[str, Callable[..., dict[str, Any]]] = {
    one.__name__: one
    for one in (
        perplexity, held_out, long, tasks, zeros, spread, kept, overlap, exchange, outliers, moved, bias, recovery,
        robustness,
    )
}  # fmt: skip
OF_MODEL = ("perplexity", "held_out", "long", "tasks")  # measures that the dense model, and a peer's, have too
