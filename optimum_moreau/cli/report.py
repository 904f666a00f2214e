"""Write one HTML page about a pruned model, or several: what was done, what it cost, what it writes."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..pipeline import processes
from . import options

EXAMPLE = "pruned -o report.html --base org/model --evidence robustness-of-model --prompt Yesterday"
PROMPT = "Once upon a time"
_EVIDENCE = "folder that robustness or insight wrote; may be given several times"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    text = "folder that prune, apply or recover wrote"
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help=text)
    page = Path("report.html")
    options.add(parser, "-o --output FILE", "the page (default report.html)", type=Path, default=page)
    options.add(parser, "--overwrite", "replace a page that is there")
    options.add(parser, "--evidence FOLDER", _EVIDENCE, type=Path, default=[], several=True)
    group = parser.add_argument_group("generations, side by side")
    options.add(group, "--base MODEL", "folder or Hub id of the unpruned model, to stand beside")
    options.add(group, "--prompt TEXT", f"may be given several times ({PROMPT!r})", several=True)
    options.add(group, "--new-tokens N", "tokens to add (default 64)", default=64)
    options.add(group, "--no-generate", "load no model and write nothing after prompts")
    options.add_loading_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the page; returns what stands on it."""
    from .. import report, saving
    from ..loading import check_same_tokenizer
    from ..report.page import Subject, measuring, write_report
    from ..saving.records import Records

    report.check_installed()
    saving.check_file(args.output, overwrite=args.overwrite)
    with processes.reserved([args.output], [*args.folders, *args.evidence, args.base]):
        options.check_whole(args, new_tokens=1)
        folders = [Path(folder).expanduser() for folder in args.folders]
        for folder in folders:
            if not folder.is_dir():
                raise CheckpointError(f"{folder}: no such folder; give one that prune, apply or recover wrote")
        names = _names(folders)
        records = {given: Records.load(folder) for given, folder in zip(args.folders, folders, strict=True)}
        subjects = [Subject(name, one) for name, one in zip(names, records.values(), strict=True)]
        plans = [one.plan for one in records.values()]
        for other in [*folders[1:], *([args.base] if args.base else [])]:
            check_same_tokenizer(str(folders[0]), str(other), trust_remote_code=args.trust_remote_code)
        places = dict.fromkeys([*args.evidence, *folders])
        evidence = [one for place in places for one in _evidence(place, args, plans)]
        written = [] if args.no_generate else _generations(args, names, plans)
        write_report(args.output, subjects, evidence, written)
    return {
        "output": str(args.output),
        "bytes": args.output.stat().st_size,
        "models": names,
        "evidence": [one.model for one in evidence],
        "unmeasured": [measuring(name, one, args.base) for name, one in records.items() if not one.measurements],
        "generations": [{"prompt": one.prompt, "texts": [list(pair) for pair in one.texts]} for one in written],
    }


def _evidence(folder: Path, args: argparse.Namespace, plans: list[Any]) -> list[Any]:
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
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(f"{twice.name}: is given twice; give each folder once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _generations(args: argparse.Namespace, names: list[str], plans: list[Any]) -> list[Any]:
    """What every model writes after every prompt; one model in memory at a time."""
    from ..data.sources import model_reference
    from ..evaluation.generations import generations
    from ..planning import fingerprint
    from ..report.page import Generation

    prompts, models = args.prompt or [PROMPT], dict(zip(names, args.folders, strict=True))
    if args.base:
        models = {f"{model_reference(args.base)}, unpruned": args.base, **models}
    texts: list[list[str]] = []
    for where in models.values():
        model, tokenizer = options.load(args, where)
        if where == args.base:
            plans[0].check_base(fingerprint(model), args.base)
        texts.append(generations(model, tokenizer, prompts, new_tokens=args.new_tokens))
        del model
    by_prompt = zip(prompts, zip(*texts, strict=True), strict=True)
    return [Generation(prompt, list(zip(models, written, strict=True))) for prompt, written in by_prompt]


def show(result: dict[str, Any]) -> str:
    """The lines that `report` prints."""
    wrote = f"{result['output']} ({result['bytes'] / 2**10:,.0f} KiB): {', '.join(result['models'])}"
    following = [("next", f"quality was not measured: {one}") for one in result["unmeasured"]]
    return options.lines(("wrote", wrote), *following)
