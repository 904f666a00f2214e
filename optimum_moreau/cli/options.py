"""Options that several verbs share: the model, how to load it, the calibration text."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..pipeline import processes


def shares(flag: str, text: str) -> list[float]:
    """Reads `0.1,0.2`; a ConfigError names the flag."""
    return _numbers(flag, text, float, "a share, or several, e.g. 0.1,0.2")


def whole_numbers(flag: str, text: str) -> list[int]:
    """Reads `0,15,31`; a ConfigError names the flag."""
    return _numbers(flag, text, int, "a whole number, or several, e.g. 0,15,31")


def _numbers(flag: str, text: str, kind: Any, legal: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag}: '{text}' is not {legal}") from None


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the model, and how to load it; where it is not required, a recipe may hold it, and the dtype."""
    parser.add_argument("model", metavar="MODEL", nargs=None if required else "?", help="folder or Hub id of the model")
    group = add_loading_arguments(parser)
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    if not required:
        parser.set_defaults(dtype=None)


def add_loading_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds how to load a model."""
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--dtype", default="auto", type=_dtype, help="auto (as saved) | float32, fp32 | bfloat16, bf16 | float16, fp16"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, …, or auto for all GPUs (default: cuda where there is one)")
    add_trust_argument(group)
    return group


def _dtype(text: str) -> str:
    """Also by its short name; what is none is refused where the model is loaded."""
    return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(text, text)


def add_trust_argument(group: argparse._ActionsContainer) -> None:
    """Adds the one word that lets code run which a model's files name."""
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run modeling code that lies beside the weights"
    )


def add_calibration_arguments(parser: argparse.ArgumentParser, *, scores: bool = True) -> None:
    """Adds the calibration text; where something is scored, also the folder that keeps steps."""
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration", metavar="TEXT", help="text file, records (.jsonl …), or hub:id[:config[:split[:column]]]"
    )
    group.add_argument("--calibration-column", metavar="NAME", help="text column of records")
    if scores:
        group.add_argument("--checkpoint-dir", metavar="FOLDER", help="keep every Moreau step, to go on after a kill")


def calibration_from(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `MoreauPruner.plan` and `prune` that the flags give."""
    return {"calibration_column": args.calibration_column, "checkpoint_dir": args.checkpoint_dir}


def add_output_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the folder to write."""
    parser.add_argument("-o", "--output", required=required, metavar="FOLDER", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that holds a model and nothing else")
    parser.add_argument("--evaluate", metavar="TEXT", help="measure the perplexity on a text, for the card")
    parser.add_argument("--card-template", metavar="FILE", help="of the model card (jinja2)")


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Loads the model and tokenizer that the flags name; one of several processes loads them on a device of its own."""
    from ..loading import load_model, load_tokenizer

    device = processes.join(args.device)
    model = load_model(
        args.model,
        dtype=args.dtype,
        device=device,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )
    return model, load_tokenizer(args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)


def perplexity_line(result: Mapping[str, Any]) -> list[str]:
    """The perplexity of each stage, for a reader."""
    stages = ", ".join(f"{stage} {value:.4f}" for stage, value in result.get("perplexity", {}).items())
    return [f"perplexity  {stages}"] if stages else []
