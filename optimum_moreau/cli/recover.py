"""Tune a pruned model with LoRA, merge the adapter, save and verify the result; the adapter is kept beside it."""

import argparse
from pathlib import Path
from typing import Any

from ..config.recovery import RecoveryConfig
from ..errors import ConfigError
from ..pipeline import processes
from ..pipeline.recipe import RecoverStep
from . import options, settings

EXAMPLE = "pruned --data alpaca.json -o recovered --epochs 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add(parser, "model PRUNED", "folder that prune or apply wrote")
    options.add_output_arguments(parser)
    settings.add_step(parser.add_argument_group("what to learn"), RecoverStep)
    options.add(parser, "--adapter FOLDER", "instead of --data: merge a LoRA adapter trained on PRUNED")
    options.add(parser, "--work-dir FOLDER", "of a run's states (default .OUTPUT.recovery)", type=Path)
    options.add_loading_arguments(parser)
    settings.add_step(parser.add_argument_group("training"), RecoveryConfig)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Tunes, or takes an adapter; merges and saves; returns what was done."""
    given = settings.step_from(args, RecoverStep, RecoveryConfig)
    output = given.pop("output")
    if args.adapter and given:
        raise ConfigError(f"--adapter: is trained already; leave --{next(iter(given)).replace('_', '-')} out")
    if not args.adapter and not args.data:
        raise ConfigError("--data: give the records to tune on, or --adapter, trained elsewhere")
    if args.adapter and args.work_dir:
        raise ConfigError("--work-dir: is for the states of a training, and --adapter trains nothing; leave it out")
    step = args.adapter or RecoverStep.from_dict(given)
    inputs = (args.model, args.adapter, args.data, args.teacher, args.evaluate, args.card_template)
    with processes.reserved([output, args.work_dir], inputs):
        from ..pipeline.chain import tune

        loading = {"dtype": args.dtype, "device": processes.join(args.device)}
        loading["trust_remote_code"] = args.trust_remote_code
        saving = {"overwrite": args.overwrite, "card_template": args.card_template}
        how = {"evaluate": args.evaluate, "bos": args.bos, "work": args.work_dir, "save_dtype": args.save_dtype}
        return tune(args.model, step, output, **how, loading=loading, saving=saving)


def show(result: dict[str, Any]) -> str:
    """The lines that `recover` prints."""
    saved = ("saved", f"{result['output']}, the adapter in {result['output']}/adapter")
    return options.lines(*rows(result), *options.quality_rows(result), saved)


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What was learnt, for a reader."""
    data, parameters = result["data"], f"{result['trainable_parameters']:,} parameters"
    if "steps" not in result:
        return [("adapter", f"{data['source']}, {parameters}, merged")]
    held_out = result["validation_loss"]
    end = "" if held_out is None else f"; held out {held_out:.4f}"
    sequences = f"{data['train_sequences']:,} sequences of {data['source']}"
    return [
        ("data", f"{sequences}, {data['validation_sequences']:,} held out"),
        ("training", f"{result['steps']} steps, {parameters} in the adapter, {result['seconds']:.0f} s"),
        ("loss", f"first {result['first_loss']:.4f}, last {result['last_loss']:.4f}{end}"),
    ]
