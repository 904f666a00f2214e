"""Measure a model: perplexity on texts, over non-overlapping segments, and zero-shot accuracy on tasks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from ..pipeline import processes
from . import options

if TYPE_CHECKING:
    from ..evaluation.records import Measurement
    from ..planning import PruningPlan

EXAMPLE = "pruned --text wikitext2.test.txt --seq-len 128 --tasks boolq,piqa --limit 200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences per pass (default 8)")
    parser.add_argument("--baseline", metavar="BASE", help="measure the model that MODEL was pruned from as well")
    parser.add_argument("--save", action="store_true", help="add the figures to evaluation.json and the card of MODEL")
    parser.add_argument("--card-template", metavar="FILE", help="of the card that --save writes anew (jinja2)")
    group = parser.add_argument_group("perplexity")
    group.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="text file, records (.jsonl …), or hub:id[:config[:split[:column]]]; may be given several times",
    )
    group.add_argument("--text-column", metavar="NAME", help="text column of records")
    group.add_argument(
        "--seq-len",
        "--sequence-length",
        dest="sequence_length",
        type=int,
        default=128,
        metavar="N",
        help="tokens per segment: 128 (default) in MoreauPruner's tables, 2048 in those of masks",
    )
    group.add_argument("--max-segments", type=int, metavar="N", help="only the first N segments")
    group = parser.add_argument_group("zero-shot tasks, through lm-eval (pip install 'optimum-moreau[eval]')")
    group.add_argument("--tasks", metavar="NAMES", help="e.g. boolq,piqa,hellaswag; all: the seven of the papers")
    group.add_argument("--task-path", type=Path, metavar="FOLDER", help="of task files (NAME.yaml, NAME.jsonl)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns perplexity, tokens and segments of each text, and the accuracy on each task.

    With a baseline, `baseline` holds the same of it, and `differences` what the two differ by.
    """
    with processes.reserved([args.model] if args.save and Path(args.model).expanduser().is_dir() else [], []):
        return _evaluate(args)


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from ..data.sources import model_reference
    from ..evaluation.records import with_new
    from ..evaluation.zero_shot import find_tasks
    from ..loading import check_same_tokenizer
    from ..planning import PLAN_NAME
    from ..saving.card import check_template
    from ..saving.records import Records

    for name, least in (("sequence_length", 2), ("batch_size", 1), ("max_segments", 1), ("limit", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} is not a whole number ≥ {least}")
    for name, flag in (("limit", "--limit"), ("task_path", "--task-path")):
        if getattr(args, name) is not None and not args.tasks:
            raise ConfigError(f"{flag}: is of zero-shot tasks; give --tasks, or leave it out")
    if not args.text and not args.tasks:
        raise ConfigError("--text: give a text to measure the perplexity on, or --tasks")
    folder, records = Path(args.model).expanduser(), None
    if args.save:
        if not (folder / PLAN_NAME).is_file():
            raise CheckpointError(
                f"{args.model}: holds no {PLAN_NAME}; --save needs a folder that prune or apply wrote"
            )
        check_template(args.card_template)
        records = Records.load(folder)
    where = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    if args.baseline:
        check_same_tokenizer(args.model, args.baseline, **where)
    if args.tasks:  # what is unknown is refused before anything is measured
        find_tasks(_task_names(args), args.task_path, trust_remote_code=args.trust_remote_code)
    found = _measure(args, args.model, args.revision)
    stage = "pruned" if records is None or records.recovery is None else "recovered"
    measured = _measurements(found, args, stage)
    if args.baseline:
        base = _measure(args, args.baseline, None, None if records is None else records.plan)
        before = _measurements(base, args, "before")
        found["baseline"] = {"model": model_reference(args.baseline), **base}
        found["differences"] = [
            {"dataset": one.dataset, "metric": one.metric, "protocol": one.protocol, "value": one.value - two.value}
            for one, two in zip(measured, before, strict=True)
        ]
        measured = [*before, *measured]
    if records is not None and processes.is_first():
        changed = replace(records, measurements=with_new(records.measurements, measured))
        changed.rewrite_card(folder, args.card_template)
    return {**found, "saved": args.model} if args.save else found


def _measure(
    args: argparse.Namespace, name: str, revision: str | None, plan: PruningPlan | None = None
) -> dict[str, Any]:
    """Everything that was asked for, of one model, which is freed afterwards; with a plan, it must be its base."""
    from ..planning import fingerprint

    model, tokenizer = options.load(argparse.Namespace(**vars(args) | {"model": name, "revision": revision}))
    if plan is not None:
        plan.check_base(fingerprint(model), name)
    found: dict[str, Any] = {}
    if args.text:
        texts = [_perplexity(model, tokenizer, text, args) for text in args.text]
        found |= texts[0] | ({"texts": texts} if len(texts) > 1 else {})
    if args.tasks:
        from ..evaluation.zero_shot import zero_shot

        how = {name: getattr(args, name) for name in ("task_path", "limit", "batch_size", "trust_remote_code")}
        accuracy = zero_shot(model, tokenizer, _task_names(args), **how)
        found |= {
            "tasks": [asdict(one) for one in accuracy.tasks],
            "average": accuracy.average,
            "average_stderr": accuracy.stderr,
        }
    return found


def _task_names(args: argparse.Namespace) -> list[str]:
    from ..evaluation.zero_shot import METRICS

    return list(METRICS) if args.tasks == "all" else [name.strip() for name in args.tasks.split(",")]


def _perplexity(model: Any, tokenizer: Any, text: str, args: argparse.Namespace) -> dict[str, Any]:
    from ..data.sources import source_name
    from ..evaluation import perplexity

    length = args.sequence_length
    result = perplexity(
        model,
        tokenizer,
        text,
        sequence_length=length,
        batch_size=args.batch_size,
        column=args.text_column,
        max_segments=args.max_segments,
    )
    first = f", the first {args.max_segments}" if args.max_segments else ""
    return {"text": source_name(text), "protocol": f"{length}-token segments{first}", **vars(result)}


def _measurements(found: Mapping[str, Any], args: argparse.Namespace, stage: str) -> list[Measurement]:
    """What was found of one model, for the record."""
    from ..data.sources import content_hash
    from ..evaluation.records import Measurement

    measured = [
        Measurement(stage, one["text"], "perplexity", one["protocol"], one["perplexity"], content_hash(text))
        for one, text in zip(_texts(found), args.text or [], strict=True)
    ]
    for one in found.get("tasks", []):
        files = [args.task_path / f"{one['task']}{suffix}" for suffix in (".yaml", ".jsonl")] if args.task_path else []
        file = next((file for file in files if file.is_file()), None)
        protocol = f"zero-shot, {one['samples']:,} questions"
        key = content_hash(file) if file else ""
        measured.append(Measurement(stage, one["task"], one["metric"], protocol, one["value"], key, one["stderr"]))
    return measured


def _texts(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return found.get("texts", [found] if "perplexity" in found else [])


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
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
    lines = [
        f"perplexity  {one['perplexity']:.4f}  ({one['text']}, {one['protocol']}:"
        f" {one['tokens']:,} tokens in {one['segments']:,} segments)"
        for one in _texts(result)
    ]
    for one in result.get("tasks", []):
        accuracy = f"{100 * one['value']:.2f} ± {100 * one['stderr']:.2f} %"
        lines.append(f"{one['task']:14} {one['metric']:8} {accuracy:>16}  ({one['samples']:,} questions)")
    if "average" in result:
        average = f"{100 * result['average']:.2f} ± {100 * result['average_stderr']:.2f} %"
        lines.append(f"{'average':14} {'':8} {average:>16}  (of {len(result['tasks'])} tasks)")
    return lines
