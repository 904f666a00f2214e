"""Compare the plans that criteria make of a model under small changes of its weights and of the calibration draw."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from . import options

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
    group = parser.add_argument_group("calibration")
    group.add_argument("--calibration", metavar="TEXT", help="text file, records (.jsonl …), or hub:id[…]")
    options.add_fields(parser.add_argument_group("what and how to prune"), options.COMPARED)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compares; returns every agreement."""
    from ..checkpoint import load_model, load_tokenizer
    from ..config import MoreauPrunerConfig
    from ..errors import CheckpointError
    from ..evaluation.robustness import robustness, verdicts
    from ..report import check_installed, draw_agreements, save_figure
    from ..sources import model_reference

    ratios = options.shares("--ratio", args.ratio)
    for ratio in ratios:
        MoreauPrunerConfig(pruning_ratio=ratio)
    if args.output and args.output.exists() and not args.output.is_dir():
        raise CheckpointError(f"{args.output}: is a file; give a folder")
    if args.output:
        check_installed()
    logging.getLogger("optimum_moreau.surgery").setLevel(logging.ERROR)  # every model here is thrown away
    where = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    found = robustness(
        lambda: load_model(args.model, dtype=args.dtype, device=args.device, **where),
        load_tokenizer(args.model, **where),
        args.calibration,
        criteria=[name.strip() for name in args.criteria.split(",")],
        perturbations=args.perturbations,
        ratios=ratios,
        config=MoreauPrunerConfig(**options.given(args, options.COMPARED)),
        evaluate=args.evaluate,
        max_segments=args.max_segments,
    )
    result = {
        "model": model_reference(args.model),
        "agreements": [one.to_dict() for one in found],
        "verdicts": verdicts(found),
    }
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "robustness.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.output / "robustness.md").write_text(show(result) + "\n", encoding="utf-8")
        save_figure(draw_agreements(found, str(result["model"])), args.output, "robustness")
    return result


def show(result: dict[str, Any]) -> str:
    """The same for a reader, as a markdown table."""
    measured = any(one["perplexity"] for one in result["agreements"])
    head = ["criterion", "ratio", "compared", "pairs", "kept alike", "removed alike", "rank"]
    head += ["perplexity", "Diff"] if measured else []
    rows = [head, ["---", *["---:" if i else "---" for i in range(len(head) - 1)]]]
    for one in result["agreements"]:
        between = " – ".join(one["between"])
        if one["of"]:
            between = f"calibration draws, {one['of']}"
        kept, removed = (f"{one[side]:.3f} ± {one[f'{side}_deviation']:.3f}" for side in ("kept", "removed"))
        row = [one["criterion"], f"{one['ratio']:g}", between, str(one["pairs"]), kept, removed, f"{one['rank']:.3f}"]
        if measured:
            pair = one["perplexity"]
            row += [f"{pair[0]:.2f}, {pair[1]:.2f}", f"{one['difference']:.2f}"] if pair else ["", ""]
        rows.append(row)
    table = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*table, *(["", *result["verdicts"]] if result["verdicts"] else [])])
