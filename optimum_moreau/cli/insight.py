"""Draw the paper's figures for a model at hand: how criteria rank its channels, and what their choices cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..pipeline import outputs
from ..registry import suggestion
from . import options, settings

if TYPE_CHECKING:
    from ..config import MoreauPrunerConfig
    from ..evaluation.findings import Insight

EXAMPLE = "org/model -o insight --criteria moreau-gs,taylor --calibration text.txt --evaluate heldout.txt --seeds 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="for insight.json, and .png and .svg figures"
    )
    parser.add_argument(
        "--figures",
        default="ranking,layers,ratios,sensitivity,map",
        metavar="NAMES",
        help="of ranking, layers, ratios, sensitivity, map (default: all)",
    )
    parser.add_argument(
        "--criteria",
        default="moreau-gs,taylor",
        metavar="NAMES",
        help="the first two are compared in ranking; sensitivity is of the first (default moreau-gs,taylor)",
    )
    parser.add_argument("--ratio", type=float, default=0.2, metavar="SHARE", help="of map, sensitivity (default 0.2)")
    parser.add_argument("--ratios", metavar="SHARES", help="of the figure ratios (default: 0.05 to 0.5)")
    parser.add_argument("--layers", metavar="NUMBERS", help="of ranking, e.g. 0,15,31 (default: four of them)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="calibration draws to average (default 1)")
    parser.add_argument("--evaluate", metavar="TEXT", help="text to measure the perplexity on")
    parser.add_argument("--max-segments", type=int, metavar="N", help="only the first N segments of that text")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result in that folder")
    group = parser.add_argument_group("calibration")
    group.add_argument("--calibration", metavar="TEXT", help="text file, records (.jsonl …), or hub:id[…]")
    settings.add_compared_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draws; returns what was found out, and the files."""
    with outputs.reserved([args.output], (args.model, args.calibration, args.evaluate)):
        return _draw(args)


def _draw(args: argparse.Namespace) -> dict[str, Any]:
    from ..config import MoreauPrunerConfig
    from ..evaluation.findings import INSIGHT_NAME
    from ..report import check_installed, draw_insight, save_figure
    from ..saving import add_files, check_addable

    check_installed()
    args = _checked(args)
    config = MoreauPrunerConfig.from_dict(settings.settings_from(args))
    check_addable(args.output, INSIGHT_NAME, overwrite=args.overwrite)
    found = _look(args, config)
    with add_files(args.output, INSIGHT_NAME, overwrite=args.overwrite) as folder:
        found.save(folder / INSIGHT_NAME)
        files = [path for name, figure in draw_insight(found).items() for path in save_figure(figure, folder, name)]
    names = [INSIGHT_NAME, *(path.name for path in files)]
    return found.to_dict() | {"files": [str(args.output / name) for name in names]}


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    """The flags, their lists read; refuses what cannot be drawn, before a model is loaded."""
    from ..config import MoreauPrunerConfig
    from ..evaluation.findings import FIGURES, PERPLEXITIES
    from ..evaluation.study import has_settings

    figures, criteria = ([part.strip() for part in text.split(",")] for text in (args.figures, args.criteria))
    if unknown := next((name for name in figures if name not in FIGURES), None):
        hint = suggestion(unknown, FIGURES)
        raise ConfigError(f"figures: unknown '{unknown}'.{hint} Known: {', '.join(FIGURES)}")
    ratios = options.shares("--ratios", args.ratios) if args.ratios else None
    layers = options.whole_numbers("--layers", args.layers) if args.layers else None
    for value in (args.ratio, *(ratios or ())):
        MoreauPrunerConfig(pruning_ratio=value)
    for name in criteria:
        MoreauPrunerConfig(criterion=name)
    for name, value in (("seeds", args.seeds), ("max-segments", args.max_segments)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: {value} is not a whole number ≥ 1")
    if "ranking" in figures and len(criteria) < 2:
        raise ConfigError("--criteria: the figure ranking compares two; give another, or leave ranking out (--figures)")
    if "sensitivity" in figures and not has_settings(criteria[0]):
        raise ConfigError(
            f"--criteria: {criteria[0]} comes first and has none of the settings η, ρ, σ, T; name moreau or moreau-gs"
            " first, or leave sensitivity out (--figures)"
        )
    if not args.evaluate and (wanting := [name for name in figures if name in PERPLEXITIES]):
        need = "needs" if len(wanting) == 1 else "need"
        raise ConfigError(f"--evaluate: {', '.join(wanting)} {need} a text to measure the perplexity on")
    return argparse.Namespace(
        **vars(args) | {"figures": figures, "criteria": criteria, "ratios": ratios, "layers": layers}
    )


def _look(args: argparse.Namespace, config: MoreauPrunerConfig) -> Insight:
    """Finds out what is wanted of the model."""
    from ..data.sources import model_reference, source_name
    from ..evaluation.findings import Insight
    from ..evaluation.study import Study
    from ..loading import load_model, load_tokenizer
    from ..planning import fingerprint

    where = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    model = load_model(args.model, dtype=args.dtype, device=args.device, **where)
    study = Study(
        model,
        load_tokenizer(args.model, **where),
        args.calibration,
        args.evaluate,
        config=config,
        seeds=args.seeds,
        max_segments=args.max_segments,
    )
    figures, criteria = args.figures, args.criteria
    at_one_ratio = [args.ratio] if {"map", "sensitivity"} & set(figures) else []
    study.check([*at_one_ratio, *(args.ratios or ())], args.layers or ())
    return Insight(
        str(model_reference(args.model)),
        fingerprint(model),
        source_name(args.evaluate) if args.evaluate else "",
        study.protocol,
        args.seeds,
        ranking=study.ranks(criteria[:2], args.layers) if "ranking" in figures else (),
        layers=study.single_layers(criteria) if "layers" in figures else None,
        ratios=study.over_ratios(criteria, args.ratios) if "ratios" in figures else None,
        sensitivity=study.sensitivity(criteria[0], args.ratio) if "sensitivity" in figures else (),
        plans={name: study.plan(name, args.ratio) for name in criteria} if "map" in figures else {},
    )


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""

    def points(curve: dict[str, Any]) -> str:
        return ", ".join(f"{x:g}: {y:.2f}" for x, y in zip(curve["x"], curve["mean"], strict=True))

    lines = []
    if result["ranking"]:
        first, second = result["ranking"][0]["criteria"]
        least = min(result["ranking"], key=lambda one: one["correlation"])
        mean = sum(one["correlation"] for one in result["ranking"]) / len(result["ranking"])
        lines.append(
            f"ranking     {first} and {second}: mean rank correlation {mean:.2f} over {len(result['ranking'])}"
            f" matrices, least {least['correlation']:.2f} ({least['module']})"
        )
    for name in ("layers", "ratios"):
        for curve in result[name]["curves"] if result[name] else []:
            lines.append(f"{name:11} perplexity by {curve['label']}: {points(curve)}")
    for panel in result["sensitivity"]:
        (curve,) = panel["curves"]
        alike = "; the choice of units does not depend on it here" if len(set(curve["mean"])) == 1 else ""
        lines.append(f"sensitivity perplexity over {panel['title']}: {points(curve)}{alike}")
    return "\n".join([*lines, *(f"wrote       {path}" for path in result["files"])])
