"""Write one HTML page about a pruned model, or several: what was done, what it cost, what it writes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from ..pipeline import processes
from . import options

if TYPE_CHECKING:
    from ..planning import PruningPlan
    from ..report.page import Evidence, Generation

EXAMPLE = "pruned -o report.html --base org/model --evidence robustness-of-model --prompt Yesterday"
PROMPT = "Once upon a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder that prune, apply or recover wrote")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default report.html)"
    )
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
    from ..report import check_installed
    from ..saving import check_file

    check_installed()
    check_file(args.output, overwrite=args.overwrite)
    with processes.reserved([args.output], [*args.folders, *args.evidence, args.base]):
        return _report(args)


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from ..loading import check_same_tokenizer
    from ..report.page import Subject, measuring, write_report
    from ..saving.records import Records

    if args.new_tokens < 1:
        raise ConfigError(f"--new-tokens: {args.new_tokens} is not a whole number ≥ 1")
    folders = [Path(folder).expanduser() for folder in args.folders]
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; give one that prune, apply or recover wrote")
    subjects = [Subject(name, Records.load(folder)) for name, folder in zip(_names(folders), folders, strict=True)]
    plans = [subject.records.plan for subject in subjects]
    for other in [*folders[1:], *([args.base] if args.base else [])]:
        check_same_tokenizer(str(folders[0]), str(other), trust_remote_code=args.trust_remote_code)
    evidence = [one for folder in dict.fromkeys([*args.evidence, *folders]) for one in _evidence(folder, args, plans)]
    written = [] if args.no_generate else _generations(args, [subject.name for subject in subjects], plans)
    write_report(args.output, subjects, evidence, written)
    return {
        "output": str(args.output),
        "bytes": args.output.stat().st_size,
        "models": [subject.name for subject in subjects],
        "evidence": [one.model for one in evidence],
        "unmeasured": [
            measuring(folder, subject.records, args.base)
            for folder, subject in zip(args.folders, subjects, strict=True)
            if not subject.records.measurements
        ],
        "generations": [{"prompt": one.prompt, "texts": [list(pair) for pair in one.texts]} for one in written],
    }


def _evidence(folder: Path, args: argparse.Namespace, plans: list[PruningPlan]) -> list[Evidence]:
    """What is known of the base models; refused where it is of another model than those that the plans are for."""
    from ..report.page import load_evidence

    found = load_evidence(folder.expanduser())
    if not found and folder in args.evidence:
        raise CheckpointError(f"{folder}: holds neither robustness.json nor insight.json; give what they wrote")
    bases = {plan.fingerprint for plan in plans}
    for one in found:
        if one.fingerprint not in bases and None not in bases:
            raise CheckpointError(f"{folder}: is about {one.model}, from which none of the models here was pruned")
    return found


def _names(folders: list[Path]) -> list[str]:
    """What to call each model: its folder's name, with as many folders above as tell them apart."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"{twice.name}: is given twice; give each folder once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _generations(args: argparse.Namespace, names: list[str], plans: list[PruningPlan]) -> list[Generation]:
    """What every model writes after every prompt; one model in memory at a time."""
    from ..data.sources import model_reference
    from ..evaluation.generations import generations
    from ..loading import load_model, load_tokenizer
    from ..planning import fingerprint
    from ..report.page import Generation

    prompts = args.prompt or [PROMPT]
    models = list(zip(names, args.folders, strict=True))
    if args.base:
        models = [(f"{model_reference(args.base)}, unpruned", args.base), *models]
    texts: list[list[str]] = []
    for _, where in models:
        code = {"trust_remote_code": args.trust_remote_code}
        model = load_model(str(where), dtype=args.dtype, device=args.device, **code)
        if where == args.base:
            plans[0].check_base(fingerprint(model), args.base)
        texts.append(generations(model, load_tokenizer(str(where), **code), prompts, new_tokens=args.new_tokens))
        del model
    return [
        Generation(prompt, [(name, written[i]) for (name, _), written in zip(models, texts, strict=True)])
        for i, prompt in enumerate(prompts)
    ]


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    wrote = f"wrote       {result['output']} ({result['bytes'] / 2**10:,.0f} KiB): {', '.join(result['models'])}"
    return "\n".join([wrote, *(f"next        quality was not measured: {one}" for one in result["unmeasured"])])
