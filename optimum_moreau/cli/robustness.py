"""Compare the plans that criteria make of a model under small changes of its weights and of the calibration draw."""

import argparse
import logging
from pathlib import Path
from typing import Any

from ..config import MoreauPrunerConfig
from ..pipeline import processes
from . import options, settings

EXAMPLE = "org/model --criteria moreau,taylor --perturbations bf16,fp16,seeds:5 --ratio 0.2 --calibration text.txt"
_PERTURBATIONS = "of bf16, fp16, fp32, int8, noise:LEVEL, samples:N, seeds:N (default bf16,fp16,seeds:3)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    options.add(parser, "--criteria NAMES", "default: moreau,taylor", type=options.names, default="moreau,taylor")
    options.add(parser, "--perturbations NAMES", _PERTURBATIONS, default="bf16,fp16,seeds:3")
    options.add(parser, "--ratio SHARES", "of the parameters removed, e.g. 0.1,0.2", default="0.2")
    options.add(parser, "--evaluate TEXT", "measure the perplexity of every pruned model on a text")
    options.add(parser, "--max-segments N", "only the first N segments of that text")
    options.add_bos_argument(parser)
    options.add(parser, "-o --output FOLDER", "for robustness.json, .md, .png and .svg", type=Path)
    options.add(parser, "--overwrite", "replace an earlier result in that folder")
    settings.add_compared_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compares; returns every agreement."""
    from .. import loading, report, saving
    from ..data.sources import model_reference
    from ..evaluation.findings import ROBUSTNESS_NAME, Robustness, verdicts
    from ..evaluation.robustness import robustness
    from ..files import write_text
    from ..planning import fingerprint

    with processes.reserved([args.output], (args.model, args.calibration, args.evaluate)):
        ratios = options.numbers("--ratio", args.ratio, float)
        for ratio in ratios:
            MoreauPrunerConfig(pruning_ratio=ratio)
        if args.output:
            report.check_installed()
            saving.check_addable(args.output, ROBUSTNESS_NAME, overwrite=args.overwrite)
        for room in ("surgery", "export"):
            logging.getLogger(f"optimum_moreau.{room}").setLevel(logging.ERROR)  # every model here is thrown away
        logging.getLogger("optimum_moreau.evaluation.robustness").setLevel(logging.INFO)  # it says what is scored
        prints: list[str] = []

        def load() -> Any:
            model = loading.load_model(args.model, dtype=args.dtype, device=args.device, **options.where(args))
            if not prints:
                prints.append(fingerprint(model))
            return model

        found = robustness(
            load,
            loading.load_tokenizer(args.model, **options.where(args)),
            args.calibration,
            criteria=args.criteria,
            perturbations=args.perturbations,
            ratios=ratios,
            config=MoreauPrunerConfig.from_dict(settings.settings_from(args)),
            evaluate=args.evaluate,
            max_segments=args.max_segments,
            bos=args.bos,
        )
        record = Robustness(str(model_reference(args.model)), prints[0], tuple(found), tuple(verdicts(found)))
        if not args.output:
            return record.to_dict()
        with saving.add_files(args.output, ROBUSTNESS_NAME, overwrite=args.overwrite) as folder:
            record.save(folder / ROBUSTNESS_NAME)
            write_text(folder / "robustness.md", show(record.to_dict()) + "\n")
            report.save_figure(report.draw_agreements(record.agreements, record.model), folder, "robustness")
    written = [str(args.output / f"robustness.{kind}") for kind in ("json", "md", "png", "svg")]
    return record.to_dict() | {"files": written}


def show(result: dict[str, Any]) -> str:
    """The markdown table that `robustness` prints."""
    from ..evaluation.findings import Robustness

    record = Robustness.from_dict({name: one for name, one in result.items() if name != "files"})
    measured = any(one.perplexity for one in record.agreements)
    head = ["criterion", "ratio", "compared", "pairs", "kept alike", "removed alike", "rank"]
    head += ["perplexity of the two", "Diff"] if measured else []
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for one in record.agreements:
        row = [one.criterion, f"{one.ratio:g}", one.words, str(one.pairs), *one.cells]
        if measured:
            row += [", ".join(f"{value:.2f}" for value in one.perplexity or ())]
            row += [f"{one.difference:.2f}" if one.difference is not None else ""]
        rows.append(row)
    legend = "Alike: overlap (Jaccard; 1: the same units), ± deviation over the pairs; rank: correlation of the scores."
    protocols = dict.fromkeys(f" ({one.protocol})" for one in record.agreements if one.protocol)
    legend += f" Diff: of the two perplexities{''.join(protocols)}." if measured else ""
    written = [f"wrote {path}" for path in result.get("files", [])]
    return "\n".join([options.table(rows), "", legend, *result["verdicts"], *written])
