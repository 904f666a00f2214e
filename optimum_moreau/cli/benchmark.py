"""Measure how fast a model is on this device, how much memory it takes and how long it loads, by turns with its base.

Peak memory is what is allocated on the GPU, or on a CPU resident beyond Python and its libraries; files are read once
before they are loaded. Where MODEL is a pruned folder and BASE is given, the figures go into its benchmark.json and
its card.
"""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..pipeline import processes
from . import options

EXAMPLE = "pruned --baseline org/model --batch-sizes 1,4,16"


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number ≥ 1, or several, e.g. 1,4,16")
    return tuple(map(int, parts))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    parser.add_argument("--baseline", metavar="BASE", help="folder or Hub id of the model that MODEL was pruned from")
    parser.add_argument("--no-save", action="store_true", help="leave benchmark.json and the card of MODEL as they are")
    parser.add_argument("--card-template", metavar="FILE", help="of the model card, which is written anew (jinja2)")
    group = parser.add_argument_group("what to measure")
    group.add_argument(
        "--batch-sizes", type=_sizes, default=(1, 4, 16), metavar="N[,N…]", help="sequences at once (default 1,4,16)"
    )
    group.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="of the prefill (default 128)")
    group.add_argument("--new-tokens", type=int, default=32, metavar="N", help="decoded after it (default 32)")
    group.add_argument(
        "--rounds",
        type=int,
        default=7,
        metavar="N",
        help="of both models, each in a fresh process; faster is what is so in every round: by chance, one row in 2ᴺ"
        " (default 7; with a base at least 3)",
    )
    group.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="in each process, of which the median counts (default 3)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns every value, the rows made of them, the verdict, and the folder whose card tells of it."""
    from ..planning import PLAN_NAME

    folder = Path(args.model).expanduser()
    saves = args.baseline is not None and not args.no_save and (folder / PLAN_NAME).is_file()
    with processes.reserved([folder] if saves else [], []):
        return _benchmark(args, folder, saves)


def _benchmark(args: argparse.Namespace, folder: Path, saves: bool) -> dict[str, Any]:
    from ..evaluation.speed import SpeedSettings, measure_speed
    from ..saving.card import check_template
    from ..saving.records import Records

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("benchmark: measures in processes of its own; run it once, without torchrun or accelerate")
    settings = SpeedSettings(**{one.name: getattr(args, one.name) for one in fields(SpeedSettings)})
    records = None
    if saves:
        check_template(args.card_template)
        records = Records.load(folder)  # what is damaged is refused before anything is measured
    logging.getLogger("optimum_moreau.evaluation.speed").setLevel(logging.INFO)  # it says which round is done
    speed = measure_speed(
        args.model,
        args.baseline,
        settings,
        plan=None if records is None else records.plan,
        dtype=args.dtype,
        device=args.device,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )
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
    """The same for a reader, as a table."""
    from ..evaluation.speed import Speed

    speed = Speed.from_dict({one.name: result[one.name] for one in fields(Speed)})
    sides = [speed.model, *([] if speed.baseline is None else [speed.baseline])]
    head = ("", "batch", "base", "pruned", "ratio", "")
    rows = [head if len(sides) > 1 else ("", "batch", "", "median", "", ""), *(row.cells for row in speed.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index in (0, 5) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ).rstrip()
        for row in rows
    ]
    names = " against ".join(f"{side.name} ({side.parameters:,} parameters)" for side in sides)
    notes = [speed.verdict, *speed.shape_notes] if speed.baseline else speed.shape_notes
    lines = [f"{names}, on {speed.device}", "", *lines, "", f"measured    {speed.how}"]
    lines += [f"{'verdict' if note == speed.verdict else 'shapes':11} {note}" for note in notes]
    if result["saved"]:
        lines.append(f"saved       {result['saved']}/benchmark.json, and the card anew")
    return "\n".join(lines)
