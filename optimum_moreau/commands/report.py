"""Write one HTML page about a pruned model, or several: what was done, what it cost, what it writes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import options

EXAMPLE = "pruned -o report.html --base org/model --evidence robustness-of-model --prompt 'Once upon a time'"
PROMPT = "Once upon a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder that prune, apply or recover wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there")
    parser.add_argument(
        "--evidence",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="folder that robustness or insight wrote; may be given several times",
    )
    group = parser.add_argument_group("generations, side by side")
    group.add_argument("--base", metavar="MODEL", help="folder or Hub id of the unpruned model, to stand beside")
    group.add_argument("--prompt", action="append", metavar="TEXT", help=f"may be given several times ({PROMPT!r})")
    group.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to add (default 64)")
    group.add_argument("--no-generate", action="store_true", help="load no model and write nothing after prompts")
    options.add_loading_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the page; returns what stands on it."""
    from ..checkpoint import check_file, check_same_tokenizer
    from ..errors import CheckpointError, ConfigError
    from ..records import Records
    from ..report import check_installed
    from ..report.evidence import load_evidence
    from ..report.page import Subject, write_report

    check_installed()
    check_file(args.output, overwrite=args.overwrite)
    if args.new_tokens < 1:
        raise ConfigError(f"--new-tokens: {args.new_tokens} is not a whole number ≥ 1")
    folders = [Path(folder).expanduser() for folder in args.folders]
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; give one that prune, apply or recover wrote")
    subjects = [Subject(name, Records.load(folder)) for name, folder in zip(_names(folders), folders, strict=True)]
    evidence = []
    for folder in dict.fromkeys([*args.evidence, *folders]):
        found = load_evidence(Path(folder).expanduser())
        if found is None and folder in args.evidence:
            raise CheckpointError(f"{folder}: holds neither robustness.json nor insight.json; give what they wrote")
        evidence += [found] if found else []
    for other in [*folders[1:], *([args.base] if args.base else [])]:
        check_same_tokenizer(str(folders[0]), str(other), trust_remote_code=args.trust_remote_code)
    written = [] if args.no_generate else _generations(args, [subject.name for subject in subjects])
    write_report(args.output, subjects, evidence, written)
    return {
        "output": str(args.output),
        "bytes": args.output.stat().st_size,
        "models": [subject.name for subject in subjects],
        "evidence": [one.model for one in evidence],
        "generations": [{"prompt": one.prompt, "texts": dict(one.texts)} for one in written],
    }


def _names(folders: list[Path]) -> list[str]:
    """What to call each model: its folder's name, with the folder above where two are alike."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        for name, folder in zip(names, folders, strict=True)
    ]


def _generations(args: argparse.Namespace, names: list[str]) -> list[Any]:
    """What every model writes after every prompt; one model in memory at a time."""
    from ..checkpoint import load_model, load_tokenizer
    from ..evaluation.generations import generations
    from ..report.page import Generation
    from ..sources import model_reference

    prompts = args.prompt or [PROMPT]
    models = dict(zip(names, args.folders, strict=True))
    if args.base:
        models = {f"{model_reference(args.base)}, unpruned": args.base, **models}
    texts: dict[str, list[str]] = {}
    for name, where in models.items():
        model = load_model(str(where), dtype=args.dtype, device=args.device, trust_remote_code=args.trust_remote_code)
        tokenizer = load_tokenizer(str(where), trust_remote_code=args.trust_remote_code)
        texts[name] = generations(model, tokenizer, prompts, new_tokens=args.new_tokens)
        del model
    return [Generation(prompt, {name: texts[name][i] for name in texts}) for i, prompt in enumerate(prompts)]


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    return f"wrote       {result['output']} ({result['bytes'] / 2**10:,.0f} KiB): {', '.join(result['models'])}"
