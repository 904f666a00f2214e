"""Runs a recipe: prunes, tunes, measures, publishes; a step that was done before from the same inputs is left out.

A folder's summary holds the hash of all that it was made from. An interrupted chain that is run again goes on where it
stopped.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.windows import CalibrationText
from ..errors import CheckpointError, ConfigError
from ..evaluation.records import EVALUATION_NAME, Measurement, load_measurements, perplexities
from ..loading import base_revision, load_config, load_model
from ..pruner import MoreauPruner
from ..recovery import RecoverySummary
from ..run.measuring import EvaluationText
from ..run.saving import check_castable
from ..saving import check_apart, check_folder, check_target, work_folder
from ..saving.card import check_template
from ..saving.records import Records
from ..saving.summary import SUMMARY_NAME, PruningSummary
from . import inputs, processes, sizes
from .recipe import Recipe, RecoverStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """How a machine gets to what a recipe says; none of it decides the result.

    Attributes:
        device: torch device, or `auto`; default: cuda where there is one.
        trust_remote_code: run modeling code that lies beside the weights.
        overwrite: replace folders that hold a model and nothing else.
        checkpoint_dir: folder that keeps Moreau steps and adjusted layers.
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
    if processes.launched() > 1 and (recipe.recover or recipe.push):
        raise ConfigError("recover and push: run them as verbs of their own; several processes share one step only")
    trust: dict[str, Any] = {"trust_remote_code": means.trust_remote_code}
    loading = {"device": processes.join(means.device), **trust}
    config = load_config(recipe.model, revision=recipe.revision, **trust)
    if recipe.recover and recipe.recover.teacher:
        load_config(recipe.recover.teacher, **trust)  # so that its commit is known
    keys = inputs.keys_of(recipe)
    with _reserved(recipe, keys, means) as done:
        read = inputs.read_inputs(recipe, config, done, means.trust_remote_code)
        return _Chain(recipe, means, loading, keys, done, *read).run_steps()


@contextmanager
def _reserved(recipe: Recipe, keys: dict[str, str], means: Means) -> Iterator[dict[str, bool]]:
    """Yields which steps are done; the folders of the others are this run's for the block, and may be written."""
    folders = {step: recipe.folders[step] for step in keys}
    check_apart([*folders.values(), means.checkpoint_dir], [*recipe.reads(), means.file])
    if means.checkpoint_dir is not None:
        check_folder(means.checkpoint_dir)
    for folder in folders.values():
        with suppress(CheckpointError), processes.reserved([folder]):
            pass  # what a run that was killed left is put right, also beside what is done
    done = {step: inputs.made_from(folder, keys[step]) for step, folder in folders.items()}
    with ExitStack() as stack:
        stack.enter_context(processes.reserved([means.checkpoint_dir]))
        for step, folder in folders.items():
            if not done[step]:
                stack.enter_context(processes.reserved([folder]))
                inputs.check_same(folder, overwrite=means.overwrite)
                check_target(folder, overwrite=means.overwrite)
                if step == "recover":
                    check_folder(_work(recipe, keys))
        yield done


def _work(recipe: Recipe, keys: dict[str, str]) -> Path:
    """Folder of the states of this very tuning: what another run left is no obstacle."""
    return work_folder(recipe.recovered, keys["recover"][:8])


@dataclass(frozen=True)
class _Chain:
    """The steps of a recipe: how models are loaded, what each is made from, which are done, and what they read."""

    recipe: Recipe
    means: Means
    loading: dict[str, Any]
    keys: dict[str, str]
    done: dict[str, bool]
    tokenizer: PreTrainedTokenizerBase
    calibration: CalibrationText
    evaluation: EvaluationText | None

    def run_steps(self) -> dict[str, Any]:
        recipe = self.recipe
        steps = {step: "skipped" if done else "done" for step, done in self.done.items()}
        if self.done["prune"]:
            logger.warning("%s: was made from these inputs before: not pruned again", recipe.output)
            self.complete(recipe.output)
        else:
            self.prune()
        if not processes.is_first():
            return {}
        found: dict[str, Any] = {"summary": PruningSummary.load(Path(recipe.output) / SUMMARY_NAME)}
        if recipe.recover:
            work = _work(recipe, self.keys)
            if self.done["recover"]:
                logger.warning("%s: was made from these inputs before: not tuned again", recipe.recovered)
                self.complete(recipe.recovered)
                shutil.rmtree(work, ignore_errors=True)  # left by a kill after the save
            else:
                how: dict[str, Any] = {"evaluate": self.evaluation, "work": work, "loading": self.loading}
                saving = self.saving("recover")
                found["recovery"] = tune(recipe.output, recipe.recover, recipe.recovered, saving=saving, **how)
        output = recipe.folders["recover" if recipe.recover else "prune"]
        if recipe.push:
            found["push"] = recipe.push.publish(output, trust_remote_code=self.means.trust_remote_code)
            steps["push"] = "done" if found["push"]["changed"] else "skipped"
        return {**found, "output": output, "measurements": self.measurements(output), "steps": steps}

    def prune(self) -> None:
        recipe = self.recipe
        pruner = MoreauPruner(
            recipe.prune,
            tokenizer=self.tokenizer,
            revision=base_revision(recipe.model, recipe.revision),
            trust_remote_code=self.means.trust_remote_code,
        )
        model = self.base()
        check_castable(model, recipe.save_dtype)
        run = pruner.prepare(model, self.calibration, checkpoint_dir=self.means.checkpoint_dir, check=sizes.check_shape)
        self.calibration.forget()
        if self.evaluation:
            pruner.evaluate(model, self.evaluation)
        summary = pruner.prune_prepared(run).summary
        pruner.cast(recipe.save_dtype)
        if not run.config.masks:
            sizes.check_removed(summary.parameters_before - summary.parameters_after, run.shape, run.config)
        if not processes.is_first():
            return
        if self.evaluation:
            pruner.evaluate(self.evaluation)
        pruner.save_pretrained(recipe.output, **self.saving("prune"))

    def complete(self, folder: str) -> None:
        """Measures what a folder that was made before lacks; writes measurements and card anew, if need be."""
        if not processes.is_first():
            return
        records = Records.load(Path(folder))
        stages = {one.stage for one in self.measurements(folder)}
        found = []
        if self.evaluation is not None:
            if folder == self.recipe.recovered:  # the pruned folder was completed first
                found += [one for one in self.measurements(self.recipe.output) if one.stage not in stages]
            elif "before" not in stages:
                base = MoreauPruner(tokenizer=self.tokenizer)
                base.evaluate(self.base(), self.evaluation)
                found += base.measurements
            if ("recovered" if records.recovery else "pruned") not in stages:
                pruner = MoreauPruner.from_pretrained(folder, **self.loading)
                pruner.measurements = []
                pruner.evaluate(self.evaluation)
                found += pruner.measurements
        if found or self.recipe.card_template:
            records = replace(records, measurements=[*records.measurements, *found])
            records.rewrite_card(Path(folder), self.recipe.card_template)

    def base(self) -> Any:
        return load_model(self.recipe.model, dtype=self.recipe.dtype, revision=self.recipe.revision, **self.loading)

    def saving(self, step: str) -> dict[str, Any]:
        template = self.recipe.card_template
        return {"overwrite": self.means.overwrite, "card_template": template, "inputs": self.keys[step]}

    def measurements(self, folder: str) -> list[Measurement]:
        """What was measured on the recipe's text, by its protocol, of the model in a folder."""
        file = Path(folder) / EVALUATION_NAME
        if self.evaluation is None or not file.is_file():
            return []
        key = self.evaluation.sha256, self.evaluation.segments().protocol
        return [one for one in load_measurements(file) if (one.sha256, one.protocol) == key]


def tune(
    folder: str,
    step: RecoverStep | str,
    output: str,
    *,
    loading: Mapping[str, Any],
    saving: Mapping[str, Any],
    evaluate: str | EvaluationText | None = None,
    bos: str | None = None,
    work: Path | None = None,
    save_dtype: str | None = None,
) -> dict[str, Any]:
    """Tunes the model of a folder, or merges an adapter into it, and saves it to another; returns what was done.

    Args:
        folder: of the pruned model.
        step: what to learn and how, or the folder of an adapter.
        output: folder to write.
        loading: keyword arguments of `load_model`.
        saving: keyword arguments of `save_pretrained`.
        evaluate: text to measure the perplexity on.
        bos: how a segment of it begins, as for `perplexity`; default: as the text says.
        work: folder of the training's states; removed when the model is saved. Default: beside the output.
        save_dtype: of the result; default: as it was loaded.
    """
    check_target(output, overwrite=saving["overwrite"])
    if not isinstance(step, str):
        work = work or work_folder(output)
        check_folder(work)
    processes.announce("recovery.training")  # it says that it begins
    check_template(saving["card_template"])
    pruner = MoreauPruner.from_pretrained(folder, **loading)
    summary = pruner.merge_adapter(step) if isinstance(step, str) else _learn(pruner, step, work, loading)
    if not processes.is_first():
        return {}
    pruner.cast(save_dtype)
    if evaluate:
        pruner.evaluate(evaluate, bos=bos)
    verification = pruner.save_pretrained(output, **saving)
    if work:
        shutil.rmtree(work, ignore_errors=True)
    return {
        **summary.training,
        "trainable_parameters": summary.trainable_parameters,
        "data": dict(summary.data),
        **perplexities(pruner.measurements),
        "verified_max_abs_difference": verification.max_abs_difference,
        "output": output,
    }


def _learn(pruner: MoreauPruner, step: RecoverStep, work: Path | None, loading: Mapping[str, Any]) -> RecoverySummary:
    """In place: tunes the pruned model as a step says."""
    teacher = None if step.teacher is None else load_model(step.teacher, **loading)
    return pruner.recover(step.data, step.config, teacher=teacher, work_dir=work)
