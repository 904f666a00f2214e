"""Tune a pruned model with LoRA, merge the adapter, save and verify the result; the adapter is kept beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..config.recovery import RecoveryConfig
from ..errors import ConfigError
from ..pipeline import processes
from ..pipeline.recipe import RecoverStep
from . import options, steps

EXAMPLE = "pruned --data alpaca.json -o recovered --epochs 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("model", metavar="PRUNED", help="folder that prune or apply wrote")
    options.add_output_arguments(parser)
    steps.add_step(parser.add_argument_group("what to learn"), RecoverStep)
    parser.add_argument("--adapter", metavar="FOLDER", help="instead of --data: merge a LoRA adapter trained on PRUNED")
    parser.add_argument("--work-dir", type=Path, metavar="FOLDER", help="of a run's states (default .OUTPUT.recovery)")
    options.add_loading_arguments(parser)
    steps.add_step(parser.add_argument_group("training"), RecoveryConfig)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Tunes, or takes an adapter; merges and saves; returns what was done."""
    settings = steps.given(args, RecoverStep, RecoveryConfig)
    output = settings.pop("output")
    if args.adapter and settings:
        raise ConfigError(f"--adapter: is trained already; leave --{next(iter(settings)).replace('_', '-')} out")
    if not args.adapter and not args.data:
        raise ConfigError("--data: give the records to tune on, or --adapter, trained elsewhere")
    if args.adapter and args.work_dir:
        raise ConfigError("--work-dir: is for the states of a training, and --adapter trains nothing; leave it out")
    step = args.adapter or RecoverStep.from_dict(settings)
    inputs = (args.model, args.adapter, args.data, args.teacher, args.evaluate, args.card_template)
    with processes.reserved([output, args.work_dir], inputs):
        from ..pipeline.chain import tune

        trust = {"trust_remote_code": args.trust_remote_code}
        return tune(
            args.model,
            step,
            output,
            evaluate=args.evaluate,
            work=args.work_dir,
            loading={"dtype": args.dtype, "device": processes.join(args.device), **trust},
            saving={"overwrite": args.overwrite, "card_template": args.card_template},
        )


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    return "\n".join(
        [
            *training_lines(result),
            *options.perplexity_line(result),
            f"verified    by a reload in a fresh process; logits differ by {result['verified_max_abs_difference']:g}",
            f"saved       {result['output']}, the adapter in {result['output']}/adapter",
        ]
    )


def training_lines(result: dict[str, Any]) -> list[str]:
    """What was learnt, for a reader."""
    data = result["data"]
    if "steps" not in result:
        return [f"adapter     {data['source']}, {result['trainable_parameters']:,} parameters, merged"]
    held_out = result["validation_loss"]
    loss = f"first {result['first_loss']:.4f}, last {result['last_loss']:.4f}"
    return [
        f"data        {data['train_sequences']:,} sequences of {data['source']},"
        f" {data['validation_sequences']:,} held out",
        f"training    {result['steps']} steps, {result['trainable_parameters']:,} parameters in the adapter,"
        f" {result['seconds']:.0f} s",
        f"loss        {loss}" + ("" if held_out is None else f"; held out {held_out:.4f}"),
    ]
