"""Runs a recipe: prunes, tunes, measures, publishes; a step that was done before from the same inputs is left out.

A folder's summary holds the hash of all that it was made from. An interrupted chain that is run again goes on where it
stopped.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.sources import content_hash
from ..errors import CheckpointError, ConfigError
from ..evaluation.records import EVALUATION_NAME, Measurement, load_measurements
from ..loading import base_revision, load_config, load_model
from ..pruner import MoreauPruner
from ..saving import check_apart, check_folder, check_target, work_folder
from ..saving.records import Records
from ..saving.summary import SUMMARY_NAME, PruningSummary
from . import inputs, outputs, processes, sizes
from .publishing import publish
from .recipe import Recipe
from .tuning import tune

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """How a machine gets to what a recipe says; none of it decides the result.

    Attributes:
        device: torch device, or `auto`; default: cuda where there is one.
        trust_remote_code: run modeling code that lies beside the weights.
        overwrite: replace folders that hold a model and nothing else.
        checkpoint_dir: folder that keeps every Moreau step.
        file: of the recipe, which no output may replace.
    """

    device: str | None = None
    trust_remote_code: bool = False
    overwrite: bool = False
    checkpoint_dir: str | None = None
    file: str | Path | None = None


def run(recipe: Recipe, means: Means) -> dict[str, Any]:
    """Runs what is not done yet.

    Args:
        recipe: what is to be done.
        means: by which means.

    Returns:
        `summary`, `recovery` and `push` of the steps, the last model's folder (`output`), `measurements`, and of each
        step whether it was `done` or `skipped`; of several processes, all but the first return nothing.

    Raises:
        MoreauError: of the kind that names the mistake (errors.py).
    """
    recipe = recipe.with_full_paths()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (recipe.recover or recipe.push):
        raise ConfigError("recover and push: run them as verbs of their own; several processes share one step only")
    loading = {"device": processes.join(means.device), "trust_remote_code": means.trust_remote_code}
    config = load_config(recipe.model, revision=recipe.revision, trust_remote_code=means.trust_remote_code)
    if recipe.recover and recipe.recover.teacher:
        load_config(recipe.recover.teacher, trust_remote_code=means.trust_remote_code)  # so that its commit is known
    keys = inputs.keys_of(recipe)
    folders = {"prune": recipe.output, "recover": recipe.recovered}
    with _reserved(recipe, keys, folders, means) as done:
        read = inputs.read_inputs(recipe, config, done, means.trust_remote_code)
        return _run(recipe, read, keys, folders, done, loading, means)


@contextmanager
def _reserved(recipe: Recipe, keys: dict[str, str], folders: dict[str, str], means: Means) -> Iterator[dict[str, bool]]:
    """Yields which steps are done; the folders of the others are this run's for the block, and may be written."""
    writes = [*(folders[step] for step in keys), means.checkpoint_dir]
    check_apart(writes, [*recipe.reads(), means.file])
    if means.checkpoint_dir is not None:
        check_folder(means.checkpoint_dir)
    for step in keys:
        with suppress(CheckpointError), outputs.claims([folders[step]]):
            pass  # what a run that was killed left is put right, also beside what is done
    done = {step: inputs.made_from(folders[step], key) for step, key in keys.items()}
    with ExitStack() as stack:
        stack.enter_context(outputs.claims([means.checkpoint_dir]))
        for step in keys:
            if not done[step]:
                stack.enter_context(outputs.claims([folders[step]]))
                inputs.check_same(folders[step], overwrite=means.overwrite)
                check_target(folders[step], overwrite=means.overwrite)
                if step == "recover":
                    check_folder(_work(recipe, keys[step]))
        yield done


def _run(
    recipe: Recipe,
    read: inputs.Inputs,
    keys: dict[str, str],
    folders: dict[str, str],
    done: dict[str, bool],
    loading: dict[str, Any],
    means: Means,
) -> dict[str, Any]:
    steps = {step: "skipped" if done[step] else "done" for step in keys}
    if done["prune"]:
        logger.warning("%s: was made from these inputs before: not pruned again", recipe.output)
        _complete(recipe, read, recipe.output, loading)
    else:
        _prune(recipe, read, keys["prune"], loading, means)
    if not processes.is_first():
        return {}
    found: dict[str, Any] = {"summary": PruningSummary.load(Path(recipe.output) / SUMMARY_NAME)}
    if recipe.recover:
        if done["recover"]:
            logger.warning("%s: was made from these inputs before: not tuned again", recipe.recovered)
            _complete(recipe, read, recipe.recovered, loading)
            shutil.rmtree(_work(recipe, keys["recover"]), ignore_errors=True)  # left by a kill after the save
        else:
            found["recovery"] = _recover(recipe, read, keys["recover"], loading, means)
    output = folders["recover" if recipe.recover else "prune"]
    if recipe.push:
        found["push"] = publish(output, recipe.push, trust_remote_code=means.trust_remote_code)
        steps["push"] = "done" if found["push"]["changed"] else "skipped"
    return {**found, "output": output, "measurements": _measurements(recipe, output), "steps": steps}


def _prune(recipe: Recipe, read: inputs.Inputs, key: str, loading: dict[str, Any], means: Means) -> None:
    model, revision = _base(recipe, loading), base_revision(recipe.model, recipe.revision)
    trust = loading["trust_remote_code"]
    pruner = MoreauPruner(recipe.prune, tokenizer=read.tokenizer, revision=revision, trust_remote_code=trust)
    run = pruner.prepare(model, read.calibration, checkpoint_dir=means.checkpoint_dir)
    read.calibration.forget()
    sizes.check_shape(run.counted, run.config)
    if read.evaluation:
        pruner.evaluate(model, read.evaluation)
    summary = pruner.prune_prepared(run).summary
    if not run.config.masks:
        sizes.check_removed(summary.parameters_before - summary.parameters_after, run.shape, run.config)
    if not processes.is_first():
        return
    if read.evaluation:
        pruner.evaluate(read.evaluation)
    pruner.save_pretrained(recipe.output, overwrite=means.overwrite, card_template=recipe.card_template, inputs=key)


def _recover(recipe: Recipe, read: inputs.Inputs, key: str, loading: dict[str, Any], means: Means) -> dict[str, Any]:
    assert recipe.recover is not None
    return tune(
        recipe.output,
        recipe.recover,
        recipe.recovered,
        evaluate=read.evaluation,
        work=_work(recipe, key),
        loading=loading,
        saving={"overwrite": means.overwrite, "card_template": recipe.card_template, "inputs": key},
    )


def _work(recipe: Recipe, key: str) -> Path:
    """Folder of the states of this very tuning: what another run left is no obstacle."""
    return work_folder(recipe.recovered, key[:8])


def _base(recipe: Recipe, loading: dict[str, Any]) -> Any:
    return load_model(recipe.model, dtype=recipe.dtype, revision=recipe.revision, **loading)


def _measurements(recipe: Recipe, folder: str) -> list[Measurement]:
    """What was measured on the recipe's text, of the model in a folder."""
    file = Path(folder) / EVALUATION_NAME
    if recipe.evaluate is None or not file.is_file():
        return []
    key = content_hash(recipe.evaluate)
    return [one for one in load_measurements(file) if one.sha256 == key]


def _complete(recipe: Recipe, read: inputs.Inputs, folder: str, loading: dict[str, Any]) -> None:
    """Measures what a folder that was made before has no figure of; writes measurements and card anew, if need be."""
    if not processes.is_first():
        return
    records = Records.load(Path(folder))
    known = _measurements(recipe, folder)
    stages = {one.stage for one in known}
    found = []
    if read.evaluation is not None:
        if folder == recipe.recovered:  # the pruned folder was completed first
            found += [one for one in _measurements(recipe, recipe.output) if one.stage not in stages]
        elif "before" not in stages:
            base = MoreauPruner(tokenizer=read.tokenizer)
            base.evaluate(_base(recipe, loading), read.evaluation)
            found += base.measurements
        if ("recovered" if records.recovery else "pruned") not in stages:
            pruner = MoreauPruner.from_pretrained(folder, **loading)
            pruner.measurements = []
            pruner.evaluate(read.evaluation)
            found += pruner.measurements
    if found or recipe.card_template:
        replace(records, measurements=[*records.measurements, *found]).rewrite_card(Path(folder), recipe.card_template)
