"""Runs a recipe: prunes, tunes, measures, publishes; a step that was done before from the same inputs is left out.

A folder's summary holds the hash of all that it was made from. An interrupted chain that is run again goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from .. import __version__
from ..card import check_template
from ..checkpoint import base_revision, check_target, load_config, load_model, load_tokenizer
from ..errors import CheckpointError, ConfigError
from ..evaluation.records import EVALUATION_NAME, Measurement, load_measurements
from ..hub import check_access
from ..pruner import MoreauPruner
from ..recipe import Recipe, RecoverStep
from ..recovery import MoreauRecovery, check_fits
from ..sources import content_hash, read_documents
from ..summary import SUMMARY_NAME, PruningSummary
from . import processes, push, recover

logger = logging.getLogger(__name__)


def run(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is not done yet; returns what every step did."""
    if recipe.recover and Path(recipe.recovered).resolve() == Path(recipe.output).resolve():
        raise ConfigError(f"recover: output: {recipe.recovered} is the pruned model's folder; give another")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (recipe.recover or recipe.push):
        raise ConfigError("recover and push: run them as verbs of their own; several processes share one step only")
    loading = {"device": processes.join(args.device), "trust_remote_code": args.trust_remote_code}
    config = load_config(recipe.model, revision=recipe.revision, trust_remote_code=args.trust_remote_code)
    keys = _keys(recipe)
    done = {step: _made_from(_folder(recipe, step), key) for step, key in keys.items()}
    for step in keys:
        if not done[step]:
            check_target(_folder(recipe, step), overwrite=args.overwrite)
    _check_inputs(recipe, config, done, args.trust_remote_code)

    steps = {step: "skipped" if done[step] else "done" for step in keys}
    if done["prune"]:
        logger.warning("%s: was made from these inputs before: not pruned again", recipe.output)
        _complete(recipe, "prune", keys, loading)
    else:
        _prune(recipe, keys["prune"], loading, args)
    if not processes.is_first():
        return {}
    summary = PruningSummary.load(Path(recipe.output) / SUMMARY_NAME)
    found: dict[str, Any] = {
        "summary": summary,
        "output": recipe.output,
        "measurements": _measurements(recipe, "prune"),
    }
    if recipe.recover:
        if done["recover"]:
            logger.warning("%s: was made from these inputs before: not tuned again", recipe.recovered)
            _complete(recipe, "recover", keys, loading)
        else:
            found["recovery"] = recover.tune(
                recipe.output,
                recipe.recover,
                recipe.recovered,
                evaluate=recipe.evaluate,
                template=recipe.card_template,
                overwrite=args.overwrite,
                loading=loading,
                inputs=keys["recover"],
            )
        found |= {"output": recipe.recovered, "measurements": _measurements(recipe, "recover")}
    if recipe.push:
        found["push"] = push.publish(found["output"], recipe.push.repo, recipe.push.options())
        steps["push"] = "done" if found["push"]["changed"] else "skipped"
    return {**found, "steps": steps}


def _keys(recipe: Recipe) -> dict[str, str]:
    """Of each step that makes a folder: sha256 of all that decides what is in it."""
    found = {
        "prune": _digest(
            version=__version__,
            model=content_hash(recipe.model),
            revision=base_revision(recipe.model, recipe.revision),
            dtype=recipe.dtype,
            calibration=recipe.calibration and content_hash(recipe.calibration),
            column=recipe.calibration_column,
            config=recipe.prune.to_dict(),
        )
    }
    if recipe.recover:
        found["recover"] = _digest(
            pruned=found["prune"],
            data=content_hash(recipe.recover.data),
            teacher=recipe.recover.teacher and content_hash(recipe.recover.teacher),
            config=recipe.recover.config.to_dict(),
        )
    return found


def _digest(**decides: Any) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _folder(recipe: Recipe, step: str) -> str:
    return recipe.output if step == "prune" else recipe.recovered


def _made_from(folder: str, key: str) -> bool:
    try:
        return PruningSummary.load(Path(folder) / SUMMARY_NAME).inputs == key
    except CheckpointError:  # there is none
        return False


def _check_inputs(recipe: Recipe, config: Any, done: dict[str, bool], trust_remote_code: bool) -> None:
    """Refuses what a later step would stumble over, before any is run."""
    check_template(recipe.card_template)
    if recipe.evaluate:
        read_documents(recipe.evaluate)
    if recipe.push:
        check_access(recipe.push.repo)
    if recipe.recover and not done["recover"]:
        _check_recovery(recipe.model, recipe.recover, config, recipe.revision, trust_remote_code)


def _check_recovery(model: str, step: RecoverStep, config: Any, revision: str | None, trust_remote_code: bool) -> None:
    teacher = step.teacher and load_config(step.teacher, trust_remote_code=trust_remote_code)
    check_fits(config, step.config, teacher or None)
    tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    MoreauRecovery(step.config, tokenizer).read(step.data)


def _prune(recipe: Recipe, key: str, loading: dict[str, Any], args: argparse.Namespace) -> None:
    where = {"revision": recipe.revision, "trust_remote_code": loading["trust_remote_code"]}
    model = load_model(recipe.model, dtype=recipe.dtype, device=loading["device"], **where)
    tokenizer = load_tokenizer(recipe.model, **where)
    revision = base_revision(recipe.model, recipe.revision)
    pruner = MoreauPruner(recipe.prune, tokenizer=tokenizer, revision=revision)
    if recipe.evaluate:
        pruner.evaluate(recipe.evaluate, model)
    pruner.prune(
        model, recipe.calibration, calibration_column=recipe.calibration_column, checkpoint_dir=args.checkpoint_dir
    )
    if not processes.is_first():
        return
    if recipe.evaluate:
        pruner.evaluate(recipe.evaluate)
    pruner.save_pretrained(recipe.output, overwrite=args.overwrite, card_template=recipe.card_template, inputs=key)


def _measurements(recipe: Recipe, step: str) -> list[Measurement]:
    """What was measured on the recipe's text of the folder that a step made."""
    file = Path(_folder(recipe, step)) / EVALUATION_NAME
    if recipe.evaluate is None or not file.is_file():
        return []
    key = content_hash(recipe.evaluate)
    return [one for one in load_measurements(file) if one.sha256 == key]


def _complete(recipe: Recipe, step: str, keys: dict[str, str], loading: dict[str, Any]) -> None:
    """Measures what a folder that was made before has no figure of, and saves it again with them."""
    if recipe.evaluate is None or not processes.is_first():
        return
    known = {one.stage for one in _measurements(recipe, step)}
    last = "pruned" if step == "prune" else "recovered"
    if {"before", "pruned", last} <= known:
        return
    if step == "recover":  # the pruned folder was completed first
        earlier = _measurements(recipe, "prune")
    else:
        base = MoreauPruner(tokenizer=load_tokenizer(recipe.model, revision=recipe.revision))
        base.evaluate(
            recipe.evaluate, load_model(recipe.model, dtype=recipe.dtype, revision=recipe.revision, **loading)
        )
        earlier = base.measurements
    pruner = MoreauPruner.from_pretrained(_folder(recipe, step), **loading)
    pruner.measurements += earlier
    pruner.evaluate(recipe.evaluate)
    pruner.save_pretrained(_folder(recipe, step), overwrite=True, card_template=recipe.card_template, inputs=keys[step])
