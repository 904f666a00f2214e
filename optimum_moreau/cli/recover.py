"""Tune a pruned model with LoRA, merge the adapter, save and verify the result; the adapter is kept beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline import outputs, processes
from . import options

if TYPE_CHECKING:
    from ..pipeline.recipe import RecoverStep

EXAMPLE = "pruned --data alpaca.json -o recovered --epochs 2"

TRAINING: options.Fields = {  # the fields of RecoveryConfig
    "epochs": (None, float, "N", "passes over the records (default 2)"),
    "max_steps": (None, int, "N", "instead: optimizer steps"),
    "batch_size": (None, int, "N", "sequences per optimizer step, accumulated (default 64)"),
    "micro_batch_size": (None, int, "N", "sequences per forward pass (default 4)"),
    "learning_rate": ("--lr", float, "X", "peak learning rate (default 1e-4)"),
    "warmup": (None, float, "SHARE", "share of the steps in which it rises (default 0.06)"),
    "sequence_length": ("--seq-len", int, "N", "tokens per sequence at most (default 256)"),
    "rank": (None, int, "N", "r of LoRA (default 8)"),
    "alpha": (None, int, "N", "α of LoRA (default 16)"),
    "dropout": (None, float, "SHARE", "on the adapters' inputs (default 0.05)"),
    "loss_on": (None, str, "NAME", "answer (of instructions and chats; default) | all"),
    "validation": (None, float, "SHARE", "records held out (default 0.05, at most 2000)"),
    "patience": (None, int, "N", "stop after N evaluations without a lower validation loss"),
    "save_steps": (None, int, "N", "steps between kept states, and between evaluations (default 100)"),
    "temperature": (None, float, "X", "of the distillation (default 2)"),
    "distillation": (None, float, "SHARE", "of the teacher in the loss (default 0.5)"),
    "seed": (None, int, "N", "of order, split and dropout (default 0)"),
    "packing": (None, bool, None, "fill every sequence with as many records as fit"),
    "gradient_checkpointing": (None, bool, None, "trade time for memory"),
}
STEP: options.Fields = {  # the fields of RecoverStep
    "data": (
        None,
        str,
        "FILE",
        "records: instruction, input, output; or messages; or text; or hub:id[:config[:split[:column]]]",
    ),
    "teacher": (None, str, "MODEL", "the unpruned model, to learn from its logits as well"),
}
OUTPUT: options.Fields = {"output": (None, str, "FOLDER", "folder of the tuned model (default OUTPUT-recovered)")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("model", metavar="PRUNED", help="folder that prune or apply wrote")
    options.add_output_arguments(parser)
    options.add_fields(parser.add_argument_group("what to learn"), STEP)
    parser.add_argument("--adapter", metavar="FOLDER", help="instead of --data: merge a LoRA adapter trained on PRUNED")
    parser.add_argument("--work-dir", type=Path, metavar="FOLDER", help="of a run's states (default .OUTPUT.recovery)")
    options.add_loading_arguments(parser)
    options.add_fields(parser.add_argument_group("training"), TRAINING)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Tunes, or takes an adapter; merges and saves; returns what was done."""
    from ..errors import ConfigError
    from ..pipeline.recipe import RecoverStep

    settings = options.given(args, {**STEP, **TRAINING})
    if args.adapter and settings:
        raise ConfigError(f"--adapter: is trained already; leave --{next(iter(settings)).replace('_', '-')} out")
    if not args.adapter and not args.data:
        raise ConfigError("--data: give the records to tune on, or --adapter, trained elsewhere")
    if args.adapter and args.work_dir:
        raise ConfigError("--work-dir: is for the states of a training, and --adapter trains nothing; leave it out")
    recovery = args.adapter or RecoverStep.from_dict(settings)
    teacher = getattr(args, "teacher", None)
    inputs = (args.model, args.adapter, args.data, teacher, args.evaluate, args.card_template)
    with outputs.reserved([args.output, args.work_dir], inputs):
        return _recover(args, recovery)


def _recover(args: argparse.Namespace, step: RecoverStep | str) -> dict[str, Any]:
    from ..pipeline.tuning import tune

    return tune(
        args.model,
        step,
        args.output,
        evaluate=args.evaluate,
        work=args.work_dir,
        loading={
            "dtype": args.dtype,
            "device": processes.join(args.device),
            "trust_remote_code": args.trust_remote_code,
        },
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
