"""Measure a model: perplexity on texts, over non-overlapping segments, and zero-shot accuracy on tasks."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import options

EXAMPLE = "pruned --text wikitext2.test.txt --seq-len 128 --tasks boolq,piqa --limit 200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences per pass (default 8)")
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
    """Measures; returns perplexity, tokens and segments of each text, and the accuracy on each task."""
    from ..errors import ConfigError

    for name, least in (("sequence_length", 2), ("batch_size", 1), ("max_segments", 1), ("limit", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} is not a whole number ≥ {least}")
    if not args.text and not args.tasks:
        raise ConfigError("--text: give a text to measure the perplexity on, or --tasks")
    model, tokenizer = options.load(args)
    found: dict[str, Any] = {}
    if args.text:
        texts = [_perplexity(model, tokenizer, text, args) for text in args.text]
        found |= texts[0] | ({"texts": texts} if len(texts) > 1 else {})
    if args.tasks:
        from ..evaluation.zero_shot import METRICS, zero_shot

        names = list(METRICS) if args.tasks == "all" else [name.strip() for name in args.tasks.split(",")]
        where = {"task_path": args.task_path, "limit": args.limit, "batch_size": args.batch_size}
        accuracy = zero_shot(model, tokenizer, names, **where)
        found |= {
            "tasks": [asdict(one) for one in accuracy.tasks],
            "average": accuracy.average,
            "average_stderr": accuracy.stderr,
        }
    return found


def _perplexity(model: Any, tokenizer: Any, text: str, args: argparse.Namespace) -> dict[str, Any]:
    from ..evaluation import perplexity
    from ..sources import source_name

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
    return {"text": source_name(text), "protocol": f"{length}-token segments", **vars(result)}


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    lines = [
        f"perplexity  {one['perplexity']:.4f}  ({one['text']}, {one['protocol']}:"
        f" {one['tokens']:,} tokens in {one['segments']:,} segments)"
        for one in result.get("texts", [result] if "perplexity" in result else [])
    ]
    for one in result.get("tasks", []):
        accuracy = f"{100 * one['value']:.2f} ± {100 * one['stderr']:.2f} %"
        lines.append(f"{one['task']:14} {one['metric']:8} {accuracy:>16}  ({one['samples']:,} questions)")
    if "average" in result:
        average = f"{100 * result['average']:.2f} ± {100 * result['average_stderr']:.2f} %"
        lines.append(f"{'average':14} {'':8} {average:>16}  (of {len(result['tasks'])} tasks)")
    return "\n".join(lines)
