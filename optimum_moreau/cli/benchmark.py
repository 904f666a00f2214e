"""Measure how fast a model is on this device, how much memory it takes and how long it loads, by turns with its base.

Peak memory is what is allocated on the GPU, or on a CPU resident beyond Python and its libraries; files are read once
before they are loaded. Where MODEL is a pruned folder and BASE is given, the figures go into its benchmark.json and
its card.
"""

import argparse
import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..pipeline import processes
from . import options

EXAMPLE = "pruned --baseline org/model --batch-sizes 1,4,16"
_ROUNDS = (
    "of both models, each in a fresh process; faster is what is so in every round: by chance, one row in 2ᴺ"
    " (default 7; with a base at least 3)"
)


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number ≥ 1, or several, e.g. 1,4,16")
    return tuple(map(int, parts))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    options.add(parser, "--baseline BASE", "folder or Hub id of the model that MODEL was pruned from")
    options.add(parser, "--no-save", "leave benchmark.json and the card of MODEL as they are")
    options.add(parser, "--card-template FILE", "of the model card, which is written anew (jinja2)")
    group = parser.add_argument_group("what to measure")
    text = "sequences at once (default 1,4,16)"
    options.add(group, "--batch-sizes N[,N…]", text, type=_sizes, default=(1, 4, 16))
    options.add(group, "--prompt-tokens N", "of the prefill (default 128)", default=128)
    options.add(group, "--new-tokens N", "decoded after it (default 32)", default=32)
    options.add(group, "--rounds N", _ROUNDS, default=7)
    options.add(group, "--repeats N", "in each process, of which the median counts (default 3)", default=3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns every value, the rows made of them, the verdict, and the folder whose card tells of it."""
    from ..evaluation.speed import SpeedSettings, measure_speed
    from ..planning import PLAN_NAME
    from ..saving.card import check_template
    from ..saving.records import Records

    folder, records = Path(args.model).expanduser(), None
    saves = args.baseline is not None and not args.no_save and (folder / PLAN_NAME).is_file()
    with processes.reserved([folder] if saves else [], []):
        if processes.launched() > 1:
            raise ConfigError(
                "benchmark: measures in processes of its own; run it once, without torchrun or accelerate"
            )
        settings = SpeedSettings(**{one.name: getattr(args, one.name) for one in fields(SpeedSettings)})
        if saves:
            check_template(args.card_template)
            records = Records.load(folder)  # what is damaged is refused before anything is measured
        logging.getLogger("optimum_moreau.evaluation.speed").setLevel(logging.INFO)  # it says which round is done
        plan = None if records is None else records.plan
        loading = {"dtype": args.dtype, "device": args.device, **options.where(args)}
        speed = measure_speed(args.model, args.baseline, settings, plan=plan, **loading)
        if records is not None:
            replace(records, speed=speed).rewrite_card(folder, args.card_template)
    return {
        **speed.to_dict(),
        "rows": [asdict(row) for row in speed.rows],
        "verdict": speed.verdict,
        "shape_notes": list(speed.shape_notes),
        "saved": None if records is None else args.model,
    }


def show(result: dict[str, Any]) -> str:
    """The table that `benchmark` prints."""
    from ..evaluation.speed import Speed

    speed = Speed.from_dict({one.name: result[one.name] for one in fields(Speed)})
    sides = [speed.model, *([] if speed.baseline is None else [speed.baseline])]
    head = ("", "batch", "base", "pruned", "ratio", "") if speed.baseline else ("", "batch", "", "median", "", "")
    rows = [head, *(row.cells for row in speed.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides_of = [str.ljust, *[str.rjust] * 4, str.ljust]
    names = " against ".join(f"{side.name} ({side.parameters:,} parameters)" for side in sides)
    lines = [f"{names}, on {speed.device}", ""]
    for row in rows:
        cells = zip(sides_of, row, widths, strict=True)
        lines.append("  ".join(aligned(cell, width) for aligned, cell, width in cells if width).rstrip())
    notes = [("verdict", speed.verdict)] if speed.baseline else []
    notes += [("shapes", note) for note in speed.shape_notes]
    if result["saved"]:
        notes.append(("saved", f"{result['saved']}/benchmark.json, and the card anew"))
    return "\n".join([*lines, "", options.lines(("measured", speed.how), *notes)])
