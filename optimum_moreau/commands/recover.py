"""Tune a pruned model with LoRA, merge the adapter, save and verify the result; the adapter is kept beside it."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import options, processes, prune

EXAMPLE = "pruned --data alpaca.json -o recovered --epochs 2"

# field of RecoveryConfig → (short alias, type, metavar, help); the flag is the field's name with hyphens.
_FIELDS: dict[str, tuple[str | None, Callable[[str], Any], str, str]] = {
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
    "loss_on": (None, str, "NAME", "answer (of instructions and chats) | all tokens"),
    "validation": (None, float, "SHARE", "records held out (default 0.05, at most 2000)"),
    "patience": (None, int, "N", "stop after N evaluations without a lower validation loss"),
    "save_steps": (None, int, "N", "steps between kept states, and between evaluations (default 100)"),
    "temperature": (None, float, "X", "of the distillation (default 2)"),
    "distillation": (None, float, "SHARE", "of the teacher in the loss (default 0.5)"),
    "seed": (None, int, "N", "of order, split and dropout (default 0)"),
}
_SWITCHES = {
    "packing": "fill every sequence with as many records as fit",
    "gradient_checkpointing": "trade time for memory",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("model", metavar="PRUNED", help="folder that prune or apply wrote")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="records with instruction, input, output; or messages; or text; or hub:id[:config[:split[:column]]]",
    )
    options.add_output_arguments(parser)
    parser.add_argument("--teacher", metavar="MODEL", help="the unpruned model, to learn from its logits as well")
    parser.add_argument("--work-dir", type=Path, metavar="FOLDER", help="of a run's states (default .OUTPUT.recovery)")
    options.add_loading_arguments(parser)
    group = parser.add_argument_group("training")
    for field, (alias, kind, metavar, text) in _FIELDS.items():
        flags = [flag for flag in (alias, f"--{field.replace('_', '-')}") if flag]
        group.add_argument(*flags, dest=field, type=kind, metavar=metavar, help=text)
    for field, text in _SWITCHES.items():
        group.add_argument(f"--{field.replace('_', '-')}", action="store_true", default=None, help=text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Tunes, merges and saves; returns what was done."""
    from ..checkpoint import check_target, load_model
    from ..pruner import MoreauPruner
    from ..recovery import RecoveryConfig

    given = {field: getattr(args, field) for field in (*_FIELDS, *_SWITCHES) if getattr(args, field) is not None}
    config = RecoveryConfig(**given)
    target = check_target(args.output, overwrite=args.overwrite)
    device = processes.join(args.device)
    loading = {"dtype": args.dtype, "device": device, "trust_remote_code": args.trust_remote_code}
    pruner = MoreauPruner.from_pretrained(args.model, **loading)
    teacher = None if args.teacher is None else load_model(args.teacher, **loading)
    work = args.work_dir or target.with_name(f".{target.name}.recovery")
    summary = pruner.recover(args.data, config, teacher=teacher, work_dir=work)
    if not processes.is_first():
        return {}
    if args.evaluate:
        pruner.evaluate(args.evaluate)
    verification = pruner.save_pretrained(args.output, overwrite=args.overwrite, card_template=args.card_template)
    shutil.rmtree(work, ignore_errors=True)
    return {
        **summary.training,
        "trainable_parameters": summary.trainable_parameters,
        "data": dict(summary.data),
        **prune.measured(pruner),
        "verified_max_abs_difference": verification.max_abs_difference,
        "output": str(args.output),
    }


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    data, held_out = result["data"], result["validation_loss"]
    loss = f"first {result['first_loss']:.4f}, last {result['last_loss']:.4f}"
    return "\n".join(
        [
            f"data        {data['train_sequences']:,} sequences of {data['source']},"
            f" {data['validation_sequences']:,} held out",
            f"training    {result['steps']} steps, {result['trainable_parameters']:,} parameters in the adapter,"
            f" {result['seconds']:.0f} s",
            f"loss        {loss}" + ("" if held_out is None else f"; held out {held_out:.4f}"),
            *prune.perplexity_line(result),
            f"verified    by a reload in a fresh process; logits differ by {result['verified_max_abs_difference']:g}",
            f"saved       {result['output']}, the adapter in {result['output']}/adapter",
        ]
    )
