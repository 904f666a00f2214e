"""Measure a model's perplexity on a text, over non-overlapping segments."""

from __future__ import annotations

import argparse
from typing import Any

from . import options

EXAMPLE = "pruned --text wikitext2.test.txt --seq-len 128"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    parser.add_argument(
        "--text", required=True, help="text file, records (.jsonl …), or hub:id[:config[:split[:column]]]"
    )
    parser.add_argument("--text-column", metavar="NAME", help="text column of records")
    parser.add_argument(
        "--seq-len",
        "--sequence-length",
        dest="sequence_length",
        type=int,
        default=128,
        metavar="N",
        help="tokens per segment (default 128)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="segments per forward pass (default 8)")
    parser.add_argument("--max-segments", type=int, metavar="N", help="only the first N segments")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns perplexity, tokens and segments."""
    from ..errors import ConfigError
    from ..evaluation import perplexity

    for name, least in (("sequence_length", 2), ("batch_size", 1), ("max_segments", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} is not a whole number ≥ {least}")
    model, tokenizer = options.load(args)
    result = perplexity(
        model,
        tokenizer,
        args.text,
        sequence_length=args.sequence_length,
        batch_size=args.batch_size,
        column=args.text_column,
        max_segments=args.max_segments,
    )
    return vars(result)


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    return f"perplexity  {result['perplexity']:.4f}  ({result['tokens']:,} tokens in {result['segments']:,} segments)"
