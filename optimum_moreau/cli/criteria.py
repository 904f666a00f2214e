"""List the criteria, and what works beside them: score, needs, patterns, settings, source; of one, its settings."""

import argparse
from collections.abc import Callable
from typing import Any

from ..config.settings import Setting, settings_of
from ..registry import BUDGETS, CRITERIA, Registry
from . import options

EXAMPLE = "moreau-gs"
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def verb_of(registry: Registry) -> tuple[Callable[..., None], Callable[..., dict[str, Any]], Callable[..., str]]:
    """Returns `add_arguments`, `run` and `show` of a verb that lists the methods of a kind, or the settings of one."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME", nargs="?", help=f"list the settings of this {registry.kind}")

    def run(args: argparse.Namespace) -> dict[str, Any]:
        known = {name: registry.get(name) for name in ([args.name] if args.name else registry)}
        found = {name: {"summary": one.summary, "paper": one.paper} for name, one in known.items()}
        if not args.name:
            return found
        settings = {one.name: _setting(one) for one in settings_of(known[args.name])}
        return {"name": args.name, **found[args.name], "settings": settings}

    return add_arguments, run, _show


def _setting(one: Setting) -> dict[str, Any]:
    bounds = ", ".join(f"{_BOUNDS[rule]} {bound:g}" for rule, bound in one.rules.items() if bound < 10**6)
    legal = bounds or ", ".join(one.choices) or one.kind_word
    return {"default": one.default, "range": legal, "affects": one.affects, "help": one.help}


def _show(result: dict[str, Any]) -> str:
    if "settings" not in result:
        rows = [["name", "what it does", "source"], ["---"] * 3]
        return options.table([*rows, *([f"`{name}`", one["summary"], one["paper"]] for name, one in result.items())])
    head = f"**{result['name']}**: {result['summary'] or 'no settings of its own'}"
    source = f" ({result['paper']})" if result["paper"] else ""
    rows = [["setting", "default", "range", "affects", "what it is"], ["---"] * 5]
    for name, one in result["settings"].items():
        default = "by the others" if one["default"] is None else str(one["default"])
        rows.append([f"`{name}`", default, one["range"], one["affects"], one["help"]])
    return f"{head}{source}\n\n{options.table(rows)}"


add_arguments, _described, _ = verb_of(CRITERIA)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns name → its flag, summary, paper, needs, settings with defaults, and what it does for units and masks."""
    if args.name:
        return _described(args)
    from ..criteria.block_influence import PAPER, SUMMARY
    from ..masks import REFINEMENTS

    found = {name: _row(CRITERIA.get(name)) for name in CRITERIA}
    found["block-influence"] = _companion("--criterion-args layers=", SUMMARY, PAPER, units="layers")
    for name, how in REFINEMENTS.items():
        found[name] = _companion("--mask-args refine=", how.summary, how.paper, masks="layer by layer")
    for name, budget in ((name, BUDGETS.get(name)) for name in BUDGETS):
        if budget.paper or budget.measured:
            masks = "unstructured, of the dense model" if budget.of_masks else ""
            found[name] = _companion("--budget", budget.summary, budget.paper, units="heads, channels", masks=masks)
            found[name]["needs"] = ["activations"] if budget.measured else []
    return found


def _companion(flag: str, summary: str, paper: str, units: str = "", masks: str = "") -> dict[str, Any]:
    """What works beside any criterion, or for whole layers instead of it, by a flag of its own."""
    about = {"flag": flag, "summary": summary, "paper": paper, "needs": ["activations"]}
    return about | {"defaults": {}, "units": units, "masks": masks}


def _row(criterion: Any) -> dict[str, Any]:
    """What there is to know of a criterion, and what it does for each pattern."""
    from ..criteria import OfGradients

    units = "heads, channels, layers" if "activations" in criterion.needs else "heads, channels, hidden, layers"
    units += " (by o_proj, down_proj)" if criterion.sides == ("in",) else ""
    units += " (static)" if criterion.name == "sparsegpt" else ""
    resolved, common = criterion().resolved(), {one.name for one in settings_of(OfGradients)}
    own = {one.name: getattr(resolved, one.name) for one in settings_of(criterion) if one.name not in common}
    defaults = {name: value for name, value in own.items() if type(value) in (int, float) or value is None}
    masks = "layer by layer" if criterion.by_layer else "of the dense model"
    about = _companion("--criterion", criterion.summary, criterion.paper, units, masks)
    return about | {"needs": list(criterion.needs), "defaults": defaults}


def show(result: dict[str, Any]) -> str:
    """The markdown tables that `criteria` prints."""
    if "settings" in result:
        return _show(result)
    rows = [["criterion", "score", "needs", "`units`", "`unstructured`, `n:m`", "settings", "source"], ["---"] * 7]
    for name, row in result.items():
        settings = ", ".join(f"{key} {value:g}" for key, value in row["defaults"].items() if value is not None)
        link = f"[{row['paper'].removeprefix('https://')}]({row['paper']})" if row["paper"] else ""
        needs = ", ".join(row["needs"]) or ("scores" if row["flag"] == "--budget" else "weights")
        flag = {"--criterion": "", "--budget": "--budget "}.get(row["flag"], row["flag"])
        rows.append([f"`{flag}{name}`", row["summary"], needs, row["units"], row["masks"], settings, link])
    return options.table(rows)
