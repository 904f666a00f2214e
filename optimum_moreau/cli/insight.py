"""Draw the paper's figures for a model at hand: how criteria rank its channels, and what their choices cost."""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from ..config import MoreauPrunerConfig
from ..errors import ConfigError
from ..pipeline import processes
from ..registry import suggestion
from . import options, settings

EXAMPLE = "org/model -o insight --criteria moreau-gs,taylor --calibration text.txt --evaluate heldout.txt --seeds 3"
_FIGURES = "of ranking, layers, ratios, sensitivity, map (default: all)"
_CRITERIA = "the first two are compared in ranking; sensitivity is of the first (default moreau-gs,taylor)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    options.add_model_arguments(parser)
    text = "for insight.json, and .png and .svg figures"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help=text)
    options.add(
        parser, "--figures NAMES", _FIGURES, type=options.names, default="ranking,layers,ratios,sensitivity,map"
    )
    options.add(parser, "--criteria NAMES", _CRITERIA, type=options.names, default="moreau-gs,taylor")
    options.add(parser, "--ratio SHARE", "of map, sensitivity (default 0.2)", type=float, default=0.2)
    options.add(parser, "--ratios SHARES", "of the figure ratios (default: 0.05 to 0.5)")
    options.add(parser, "--layers NUMBERS", "of ranking, e.g. 0,15,31 (default: four of them)")
    options.add(parser, "--seeds N", "calibration draws to average (default 1)", default=1)
    options.add(parser, "--evaluate TEXT", "text to measure the perplexity on")
    options.add(parser, "--max-segments N", "only the first N segments of that text")
    options.add_bos_argument(parser)
    options.add(parser, "--overwrite", "replace an earlier result in that folder")
    settings.add_compared_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draws; returns what was found out, and the files."""
    from .. import report, saving
    from ..evaluation.findings import INSIGHT_NAME

    with processes.reserved([args.output], (args.model, args.calibration, args.evaluate)):
        report.check_installed()
        _check(args)
        config = MoreauPrunerConfig.from_dict(settings.settings_from(args))
        saving.check_addable(args.output, INSIGHT_NAME, overwrite=args.overwrite)
        found = _look(args, config)
        with saving.add_files(args.output, INSIGHT_NAME, overwrite=args.overwrite) as folder:
            found.save(folder / INSIGHT_NAME)
            figures = report.draw_insight(found).items()
            files = [path for name, figure in figures for path in report.save_figure(figure, folder, name)]
    names = [INSIGHT_NAME, *(path.name for path in files)]
    return found.to_dict() | {"files": [str(args.output / name) for name in names]}


def _check(args: argparse.Namespace) -> None:
    """Reads the lists of numbers, in place; refuses what cannot be drawn, before a model is loaded."""
    from ..evaluation.findings import FIGURES, PERPLEXITIES
    from ..evaluation.study import has_settings

    figures, criteria = args.figures, args.criteria
    if unknown := next((name for name in figures if name not in FIGURES), None):
        hint = suggestion(unknown, FIGURES)
        raise ConfigError(f"figures: unknown '{unknown}'.{hint} Known: {', '.join(FIGURES)}")
    args.ratios = options.numbers("--ratios", args.ratios, float) if args.ratios else None
    args.layers = options.numbers("--layers", args.layers, int) if args.layers else None
    for value in (args.ratio, *(args.ratios or ())):
        MoreauPrunerConfig(pruning_ratio=value)
    for name in criteria:
        MoreauPrunerConfig(criterion=name)
    options.check_whole(args, seeds=1, max_segments=1)
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


def _look(args: argparse.Namespace, config: MoreauPrunerConfig) -> Any:
    """Finds out what is wanted of the model."""
    from ..data.sources import model_reference, source_name
    from ..evaluation.findings import Insight
    from ..evaluation.study import Study
    from ..planning import fingerprint

    model, tokenizer = options.load(args)
    how = {"seeds": args.seeds, "max_segments": args.max_segments, "bos": args.bos}
    study = Study(model, tokenizer, args.calibration, args.evaluate, config=config, **how)
    figures, criteria = args.figures, args.criteria
    at_one_ratio = [args.ratio] if {"map", "sensitivity"} & set(figures) else []
    study.check([*at_one_ratio, *(args.ratios or ())], args.layers or ())
    about = (str(model_reference(args.model)), fingerprint(model), source_name(args.evaluate) if args.evaluate else "")
    return Insight(
        *(*about, study.protocol, args.seeds),
        ranking=study.ranks(criteria[:2], args.layers) if "ranking" in figures else (),
        layers=study.single_layers(criteria) if "layers" in figures else None,
        ratios=study.over_ratios(criteria, args.ratios) if "ratios" in figures else None,
        sensitivity=study.sensitivity(criteria[0], args.ratio) if "sensitivity" in figures else (),
        plans={name: study.plan(name, args.ratio) for name in criteria} if "map" in figures else {},
    )


def show(result: dict[str, Any]) -> str:
    """The lines that `insight` prints."""

    def points(curve: dict[str, Any]) -> str:
        return ", ".join(f"{x:g}: {y:.2f}" for x, y in zip(curve["x"], curve["mean"], strict=True))

    rows = []
    if ranking := result["ranking"]:
        least = min(ranking, key=lambda one: one["correlation"])
        mean = f"mean rank correlation {fmean(one['correlation'] for one in ranking):.2f} over {len(ranking)} matrices"
        worst = f"least {least['correlation']:.2f} ({least['module']})"
        rows.append(("ranking", f"{' and '.join(ranking[0]['criteria'])}: {mean}, {worst}"))
    for name in ("layers", "ratios"):
        curves = result[name]["curves"] if result[name] else []
        rows += [(name, f"perplexity by {curve['label']}: {points(curve)}") for curve in curves]
    for panel in result["sensitivity"]:
        (curve,) = panel["curves"]
        alike = "; the choice of units does not depend on it here" if len(set(curve["mean"])) == 1 else ""
        rows.append(("sensitivity", f"perplexity over {panel['title']}: {points(curve)}{alike}"))
    if result["protocol"]:
        rows.append(("measured", f"perplexity of {result['text']}, {result['protocol']}"))
    return options.lines(*rows, *(("wrote", path) for path in result["files"]))
