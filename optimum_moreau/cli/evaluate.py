"""Measure a model: perplexity on texts, over non-overlapping segments, and zero-shot accuracy on tasks."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..pipeline import processes
from . import options

logger = logging.getLogger(__name__)
EXAMPLE = "pruned --text wikitext2.test.txt --seq-len 128 --tasks boolq,piqa --limit 200"
_TEXT = "text file, records (.jsonl …), or hub:id[:config[:split[:column]]]; may be given several times"
_LENGTH = "tokens per segment: 128 (default) in MoreauPruner's tables, 2048 in those of masks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    options.add(parser, "--batch-size N", "sequences per pass (default 8)", default=8)
    options.add(parser, "--baseline BASE", "measure the model that MODEL was pruned from as well")
    options.add(parser, "--save", "add the figures to evaluation.json and the card of MODEL")
    options.add(parser, "--card-template FILE", "of the card that --save writes anew (jinja2)")
    group = parser.add_argument_group("perplexity")
    options.add(group, "--text TEXT", _TEXT, several=True)
    options.add(group, "--text-column NAME", "text column of records")
    names = ("--seq-len", "--sequence-length")
    group.add_argument(*names, dest="sequence_length", type=int, default=128, metavar="N", help=_LENGTH)
    options.add(group, "--max-segments N", "only the first N segments")
    options.add_bos_argument(group)
    group = parser.add_argument_group("zero-shot tasks, through lm-eval (pip install 'optimum-moreau[eval]')")
    options.add(group, "--tasks NAMES", "e.g. boolq,piqa,hellaswag; all: the seven of the papers")
    options.add(group, "--task-path FOLDER", "of task files (NAME.yaml, NAME.jsonl)", type=Path)
    options.add(group, "--limit N", "only the first N questions of each task")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns perplexity, tokens and segments of each text, and the accuracy on each task.

    With a baseline, `baseline` holds the same of it, and `differences` what the two differ by.
    """
    with processes.reserved([args.model] if args.save and Path(args.model).expanduser().is_dir() else [], []):
        return _evaluate(args)


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from ..data.sources import model_reference
    from ..evaluation.records import CALIBRATED_ALONE, is_of_calibration_alone, with_new
    from ..evaluation.zero_shot import find_tasks
    from ..loading import check_same_tokenizer
    from ..planning import PLAN_NAME
    from ..saving.card import check_template
    from ..saving.records import Records

    options.check_whole(args, sequence_length=2, batch_size=1, max_segments=1, limit=1)
    for name, flag in (("limit", "--limit"), ("task_path", "--task-path")):
        if getattr(args, name) is not None and not args.tasks:
            raise ConfigError(f"{flag}: is of zero-shot tasks; give --tasks, or leave it out")
    if not args.text and not args.tasks:
        raise ConfigError("--text: give a text to measure the perplexity on, or --tasks")
    folder, records = Path(args.model).expanduser(), None
    if args.save:
        if not (folder / PLAN_NAME).is_file():
            words = f"holds no {PLAN_NAME}; --save needs a folder that prune or apply wrote"
            raise CheckpointError(f"{args.model}: {words}")
        check_template(args.card_template)
        records = Records.load(folder)
    if args.baseline:
        check_same_tokenizer(args.model, args.baseline, **options.where(args))
    if args.tasks:  # what is unknown is refused before anything is measured
        find_tasks(_task_names(args), args.task_path, trust_remote_code=args.trust_remote_code)
    drawn = _fitted_to(folder)
    found, measured = _measure(args, "recovered" if records and records.recovery else "pruned", drawn)
    if is_of_calibration_alone(measured, drawn):
        logger.warning("%s", CALIBRATED_ALONE)
    if args.baseline:
        base, before = _measure(args, "before", drawn, args.baseline, None if records is None else records.plan)
        found["baseline"] = {"model": model_reference(args.baseline), **base}
        found["differences"] = [
            {"dataset": one.dataset, "metric": one.metric, "protocol": one.protocol, "value": one.value - two.value}
            for one, two in zip(measured, before, strict=True)
        ]
        measured = [*before, *measured]
    if records and processes.is_first():
        changed = replace(records, measurements=with_new(records.measurements, measured))
        changed.rewrite_card(folder, args.card_template)
    return {**found, "saved": args.model} if args.save else found


def _fitted_to(folder: Path) -> Mapping[str, Any]:
    """What the pruned model in a folder was calibrated on; empty where no summary says that."""
    from ..saving.summary import SUMMARY_NAME, PruningSummary

    with suppress(CheckpointError):
        return PruningSummary.load(folder / SUMMARY_NAME).fitted_to
    return {}


def _measure(
    args: argparse.Namespace, stage: str, drawn: Mapping[str, Any], other: str | None = None, plan: Any = None
) -> tuple[Any, list[Any]]:
    """Everything that was asked for, of one model, which is freed afterwards; with a plan, it must be its base.

    Returns it as it is printed, and for the record; a text is named by whether it is the one that was `drawn` from.
    """
    from ..data.sources import content_hash, source_name
    from ..evaluation import perplexity
    from ..evaluation.records import Measurement
    from ..planning import fingerprint

    model, tokenizer = options.load(args, other)
    if plan is not None:
        plan.check_base(fingerprint(model), other or args.model)
    how = {name: getattr(args, name) for name in ("sequence_length", "batch_size", "max_segments", "bos")}
    texts, measured = [], []
    for text in args.text or []:
        name, result = source_name(text), perplexity(model, tokenizer, text, column=args.text_column, **how)
        value = result.perplexity
        measured.append(Measurement(stage, name, "perplexity", result.protocol, value, content_hash(text)))
        kind = measured[-1].likeness(drawn)
        texts.append({"text": name, **({"kind": kind} if kind else {}), **vars(result)})
    found: dict[str, Any] = (texts[0] if texts else {}) | ({"texts": texts} if len(texts) > 1 else {})
    if args.tasks:
        from ..evaluation.zero_shot import zero_shot

        how = {name: getattr(args, name) for name in ("task_path", "limit", "batch_size", "trust_remote_code")}
        accuracy = zero_shot(model, tokenizer, _task_names(args), **how)
        found["tasks"] = [asdict(one) for one in accuracy.tasks]
        found |= {"average": accuracy.average, "average_stderr": accuracy.stderr}
        for one in accuracy.tasks:
            files = [args.task_path / f"{one.task}{end}" for end in (".yaml", ".jsonl")] if args.task_path else []
            key = next((content_hash(file) for file in files if file.is_file()), "")
            questions = f"zero-shot, {one.samples:,} questions"
            measured.append(Measurement(stage, one.task, one.metric, questions, one.value, key, one.stderr))
    return found, measured


def _task_names(args: argparse.Namespace) -> list[str]:
    from ..evaluation.zero_shot import METRICS

    return list(METRICS) if args.tasks == "all" else options.names(args.tasks)


def _texts(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return found.get("texts", [found] if "perplexity" in found else [])


def show(result: dict[str, Any]) -> str:
    """The lines that `evaluate` prints."""
    lines = _lines(result)
    if "baseline" in result:
        lines = [*lines, "", f"base: {result['baseline']['model']}", *_lines(result["baseline"]), "", "above the base"]
    for one in result.get("differences", []):
        value = f"{one['value']:+.4f}" if one["metric"] == "perplexity" else f"{100 * one['value']:+.2f} points"
        lines.append(f"{one['metric']:10}  {value}  ({one['dataset']}, {one['protocol']})")
    if result.get("saved"):
        lines.append(f"saved       {result['saved']}/evaluation.json, and the card anew")
    return "\n".join(lines)


def _lines(result: Mapping[str, Any]) -> list[str]:
    """Of one model."""
    lines = []
    for one in _texts(result):
        size = f"{one['tokens']:,} tokens in {one['segments']:,} segments"
        text = ", ".join(one[key] for key in ("text", "kind", "protocol") if key in one)
        lines.append(f"perplexity  {one['perplexity']:.4f}  ({text}: {size})")
    rows = [(one["task"], one["metric"], one, f"{one['samples']:,} questions") for one in result.get("tasks", [])]
    if "average" in result:
        whole = {"value": result["average"], "stderr": result["average_stderr"]}
        rows.append(("average", "", whole, f"of {len(result['tasks'])} tasks"))
    for name, metric, one, of in rows:
        accuracy = f"{100 * one['value']:.2f} ± {100 * one['stderr']:.2f} %"
        lines.append(f"{name:14} {metric:8} {accuracy:>16}  ({of})")
    return lines
