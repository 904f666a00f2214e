"""What several verbs share: their options, how `--help` lists these, loading what they name, printing a result.

Help takes a screen and a half: a short usage, one line a flag; what few people set is listed by `--help-all`.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ..config.quantities import words_for_parts
from ..config.validation import BOS
from ..errors import ConfigError
from ..pipeline import processes

HELP_ALL = "--help-all"
_BAR = "\\|"
_LEGAL: dict[type, str] = {float: "a share, or several, e.g. 0.1,0.2", int: "a whole number, or several, e.g. 0,15,31"}


def add(group: Any, names: str, text: str, *, type: Any = None, default: Any = None, several: bool = False) -> None:
    """Adds an argument: `add(parser, "-o --output FOLDER", "folder to write", type=Path)`.

    A value N is a whole number; a flag without a value is a switch.
    """
    *flags, value = names.split()
    if value.startswith("-"):
        group.add_argument(*flags, value, action="store_true", help=text)
    else:
        kind, action = int if value == "N" else type, _Joined if value == "K=V,…" else "append" if several else "store"
        group.add_argument(*flags, metavar=value, help=text, type=kind, default=default, action=action)


class _Joined(argparse.Action):
    """Settings that are given in several flags are one after the other."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


def rarely(text: str) -> str:
    """The help of a flag that only `--help-all` lists."""
    return text if HELP_ALL in sys.argv else argparse.SUPPRESS


def shorten(parser: argparse.ArgumentParser) -> None:
    """Gives a parser, with all its arguments, a usage of one line and a wide list."""
    names = [
        f"[{one.metavar or one.dest}]" if one.nargs == "?" else str(one.metavar or one.dest)
        for one in parser._get_positional_actions()
    ]
    required = [f"{one.option_strings[0]} {one.metavar}" for one in parser._get_optional_actions() if one.required]
    parser.usage = " ".join([parser.prog, *names, *required, "[options]"]).replace("%", "%%")
    parser.formatter_class = _Wide


class _Wide(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=32, width=max(shutil.get_terminal_size((120, 24)).columns - 2, 118))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """One value for all names of a flag: `-o, --output FOLDER`."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


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
    dtypes = "auto (as saved) | float32, fp32 | bfloat16, bf16 | float16, fp16"
    group.add_argument("--dtype", default="auto", type=_dtype, help=dtypes)
    group.add_argument("--device", help="cpu, cuda, cuda:1, …, or auto for all GPUs (default: cuda where there is one)")
    add_trust_argument(group)
    return group


def _dtype(text: str) -> str:
    """Also by its short name; what is none is refused where the model is loaded."""
    return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(text, text)


def add_trust_argument(group: argparse._ActionsContainer) -> None:
    """Adds the one word that lets code run which a model's files name."""
    add(group, "--trust-remote-code", "run modeling code that lies beside the weights")


def add_calibration_arguments(parser: argparse.ArgumentParser, *, scores: bool = True) -> None:
    """Adds the calibration text; where something is scored, also the folder that keeps steps."""
    group = parser.add_argument_group("calibration")
    add(group, "--calibration TEXT", "text file, records (.jsonl …), or hub:id[:config[:split[:column]]]")
    add(group, "--calibration-column NAME", "text column of records")
    if scores:
        add(group, "--checkpoint-dir FOLDER", "keep Moreau steps, and of prune adjusted layers, to go on after a kill")


def add_output_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the folder to write."""
    parser.add_argument("-o", "--output", required=required, metavar="FOLDER", help="folder to write")
    add(parser, "--overwrite", "replace a folder that holds a model and nothing else")
    add(parser, "--evaluate TEXT", "measure the perplexity on a text, for the card")
    add_bos_argument(parser, default=None, rare=True)
    add(parser, "--card-template FILE", rarely("of the model card (jinja2)"))
    text, kinds = "to save the result in: fp32 | bf16 | fp16 (default: as loaded)", ("float32", "bfloat16", "float16")
    parser.add_argument("--save-dtype", metavar="DTYPE", type=_dtype, choices=kinds, help=text)


def add_bos_argument(group: Any, *, default: str | None = "auto", rare: bool = False) -> None:
    """Adds how a segment of a text that is measured begins."""
    text = "a segment begins as the tokenizer begins a text (auto, default), or without BOS (paper)"
    group.add_argument("--bos", choices=BOS, default=default, metavar="HOW", help=rarely(text) if rare else text)


def names(text: str) -> list[str]:
    """Reads `moreau,taylor`."""
    return [part.strip() for part in text.split(",")]


def numbers(flag: str, text: str, kind: type) -> list[Any]:
    """Reads `0.1,0.2` or `0,15,31`; a ConfigError names the flag."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag}: '{text}' is not {_LEGAL[kind]}") from None


def check_whole(args: argparse.Namespace, **least: int) -> None:
    """Refuses a whole number that is below its least; a ConfigError names the flag."""
    for name, bound in least.items():
        if (value := getattr(args, name)) is not None and value < bound:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} is not a whole number ≥ {bound}")


def where(args: argparse.Namespace) -> dict[str, Any]:
    """Which revision of a model is read, and whether its code may run."""
    return {"revision": args.revision, "trust_remote_code": args.trust_remote_code}


def load(args: argparse.Namespace, other: str | None = None) -> tuple[Any, Any]:
    """Loads the model that the flags name, or another, and its tokenizer; of several processes each has its device."""
    from ..loading import load_config, load_model, load_tokenizer

    source = where(args) if other is None else {"trust_remote_code": args.trust_remote_code}
    device, name = processes.join(args.device), other or args.model
    load_config(name, **source)  # whether there is a model at all
    tokenizer = load_tokenizer(name, **source)  # a model without one is refused before its weights are read
    return load_model(name, dtype=args.dtype, device=device, **source), tokenizer


def lines(*rows: tuple[str, str]) -> str:
    """What was done, for a reader: aligned lines of a word and what it says."""
    return "\n".join(f"{word:11} {text}" for word, text in rows)


def table(rows: Iterable[Iterable[str]]) -> str:
    """Cells as a markdown table."""
    return "\n".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in row)} |" for row in rows)


def parameter_row(result: Mapping[str, Any], more: str = "") -> tuple[str, str]:
    """The parameters before and after, and what each target gave of them."""
    before, after, ratio = (result[name] for name in ("parameters_before", "parameters_after", "ratio_achieved"))
    parts = words_for_parts(result["contributions"], before)
    return "parameters", f"{before:,} → {after:,}  (−{100 * ratio:.2f} %{parts}{more})"


def quality_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The perplexity of each stage and its protocol, if it was measured; how the folder differs from what was saved."""
    stages = ", ".join(f"{stage} {value:.4f}" for stage, value in result.get("perplexity", {}).items())
    difference = f"logits differ by {result['verified_max_abs_difference']:g}"
    verified = ("verified", f"by a reload in a fresh process; {difference}")
    return [("perplexity", f"{stages}  ({result['protocol']})"), verified] if stages else [verified]
