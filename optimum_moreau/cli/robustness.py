"""Compare the plans that criteria make of a model under small changes of its weights and of the calibration draw."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline import outputs
from . import options, settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..evaluation.findings import Robustness

EXAMPLE = "org/model --criteria moreau,taylor --perturbations bf16,fp16,seeds:5 --ratio 0.2 --calibration text.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    parser.add_argument("--criteria", default="moreau,taylor", metavar="NAMES", help="default: moreau,taylor")
    parser.add_argument(
        "--perturbations",
        default="bf16,fp16,seeds:3",
        metavar="NAMES",
        help="of bf16, fp16, fp32, int8, noise:LEVEL, samples:N, seeds:N (default bf16,fp16,seeds:3)",
    )
    parser.add_argument("--ratio", default="0.2", metavar="SHARES", help="of the parameters removed, e.g. 0.1,0.2")
    parser.add_argument("--evaluate", metavar="TEXT", help="measure the perplexity of every pruned model on a text")
    parser.add_argument("--max-segments", type=int, metavar="N", help="only the first N segments of that text")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="for robustness.json, .md, .png and .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result in that folder")
    group = parser.add_argument_group("calibration")
    group.add_argument("--calibration", metavar="TEXT", help="text file, records (.jsonl …), or hub:id[…]")
    settings.add_compared_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compares; returns every agreement."""
    with outputs.reserved([args.output], (args.model, args.calibration, args.evaluate)):
        return _compare(args)


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from ..config import MoreauPrunerConfig
    from ..data.sources import model_reference
    from ..evaluation.findings import ROBUSTNESS_NAME, Robustness, verdicts
    from ..evaluation.robustness import robustness
    from ..loading import load_model, load_tokenizer
    from ..planning import fingerprint
    from ..report import check_installed
    from ..saving import check_addable

    ratios = options.shares("--ratio", args.ratio)
    for ratio in ratios:
        MoreauPrunerConfig(pruning_ratio=ratio)
    if args.output:
        check_installed()
        check_addable(args.output, ROBUSTNESS_NAME, overwrite=args.overwrite)
    for room in ("surgery", "export"):
        logging.getLogger(f"optimum_moreau.{room}").setLevel(logging.ERROR)  # every model here is thrown away
    logging.getLogger("optimum_moreau.evaluation.robustness").setLevel(logging.INFO)  # it says what is scored
    where = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    prints: list[str] = []

    def load() -> PreTrainedModel:
        model = load_model(args.model, dtype=args.dtype, device=args.device, **where)
        if not prints:
            prints.append(fingerprint(model))
        return model

    found = robustness(
        load,
        load_tokenizer(args.model, **where),
        args.calibration,
        criteria=[name.strip() for name in args.criteria.split(",")],
        perturbations=args.perturbations,
        ratios=ratios,
        config=MoreauPrunerConfig.from_dict(settings.settings_from(args)),
        evaluate=args.evaluate,
        max_segments=args.max_segments,
    )
    record = Robustness(str(model_reference(args.model)), prints[0], tuple(found), tuple(verdicts(found)))
    if args.output:
        _write(record, args.output, overwrite=args.overwrite)
    files = [str(args.output / f"robustness.{kind}") for kind in ("json", "md", "png", "svg")] if args.output else []
    return record.to_dict() | ({"files": files} if files else {})


def _write(record: Robustness, output: Path, *, overwrite: bool) -> None:
    """Writes the agreements as JSON, as a table and as a figure."""
    from ..evaluation.findings import ROBUSTNESS_NAME
    from ..files import write_text
    from ..report import draw_agreements, save_figure
    from ..saving import add_files

    with add_files(output, ROBUSTNESS_NAME, overwrite=overwrite) as folder:
        record.save(folder / ROBUSTNESS_NAME)
        write_text(folder / "robustness.md", show(record.to_dict()) + "\n")
        save_figure(draw_agreements(record.agreements, record.model), folder, "robustness")


def show(result: dict[str, Any]) -> str:
    """The same for a reader, as a markdown table."""
    from ..evaluation.findings import Robustness

    files = result.get("files", [])
    agreements = Robustness.from_dict({name: one for name, one in result.items() if name != "files"}).agreements
    measured = any(one.perplexity for one in agreements)
    head = ["criterion", "ratio", "compared", "pairs", "kept alike", "removed alike", "rank"]
    head += ["perplexity of the two", "Diff"] if measured else []
    rows = [head, ["---", *["---:" if i else "---" for i in range(len(head) - 1)]]]
    for one in agreements:
        row = [one.criterion, f"{one.ratio:g}", one.words, str(one.pairs), *one.cells]
        if measured:
            row += [", ".join(f"{value:.2f}" for value in one.perplexity or ())]
            row += [f"{one.difference:.2f}" if one.difference is not None else ""]
        rows.append(row)
    legend = "Alike: overlap (Jaccard; 1: the same units), ± deviation over the pairs; rank: correlation of the scores."
    legend += " Diff: of the two perplexities." if measured else ""
    lines = [*(f"| {' | '.join(row)} |" for row in rows), "", legend, *result["verdicts"]]
    return "\n".join([*lines, *(f"wrote {path}" for path in files)])
