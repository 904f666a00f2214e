"""Draws what was found out about a model, in one style. Each function takes records and returns a matplotlib `Figure`.

Colours are those of Okabe and Ito, which readers with any kind of colour vision tell apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ..errors import ConfigError
from ..evaluation.findings import Agreement, ChannelRanks, Insight, Panel
from ..files import write_bytes
from ..planning import PruningPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)
MARKERS = "osD^vP"  # every curve has one of its own, besides its colour
INK = "#1a1a1a"  # text and lines; becomes the page's own colour where a figure stands in a page

_DOTS = 150  # per inch, of pictures, and of clouds of points in drawings
_STEEP = 20  # perplexities that span more than this factor are drawn on a logarithmic axis
_CLOUD = 2000  # more points than that are drawn as a picture
_STAYS = "#0072b3"  # blue as a map's picture has it, in light and dark
_CELLS = 256  # of a map's row; more units than that share a cell


def check_installed() -> None:
    """Raises ConfigError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise ConfigError("figures need matplotlib, which is not installed: pip install 'optimum-moreau[report]'")


@contextmanager
def style() -> Iterator[None]:
    """Within the block figures are drawn and written in one style."""
    check_installed()
    import matplotlib

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: Any = {
        **dict.fromkeys(ink, INK),
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.size": 9.5,
        "axes.titlesize": 10,
        "figure.titlesize": 11,
        "figure.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # a name may hold dollar signs
        "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
        "svg.hashsalt": "optimum-moreau",  # the same figure gives the same file
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes NAME.png (150 dots per inch) and NAME.svg into a folder; returns the files."""
    files = folder / f"{name}.png", folder / f"{name}.svg"
    for file, metadata in zip(files, (None, {"Date": None}), strict=True):
        drawn = io.BytesIO()
        with style():
            figure.savefig(drawn, format=file.suffix[1:], dpi=_DOTS, metadata=metadata)
        write_bytes(file, drawn.getvalue())
    return files


def inline_svg(figure: Figure, label: str) -> Markup:
    """Returns the figure as an `<svg>` element: in the page's colour of text, and named for screen readers."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", dpi=_DOTS, transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = svg.replace(INK, "currentColor").replace(BLUE.lower(), "var(--blue)")  # both follow light and dark
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)  # ids are a page's own
    head, rest = svg.split(">", 1)
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    size = f' style="max-width: {float(width[1]) * 4 / 3:.0f}px"' if width else ""
    return Markup(f'{head} role="img" aria-label="{escape(label)}"{size}>{rest.strip()}')


def draw_insight(insight: Insight) -> dict[str, Figure]:
    """Draws every figure that there is something for: name of the figure → figure."""
    found = {}
    for kind, words in (("self_attn", "attention"), ("mlp", "mlp")):
        if ranks := [one for one in insight.ranking if f".{kind}." in one.module]:
            found[f"ranking-{words}"] = draw_ranking(ranks, insight.model)
    draws = f" (mean ± deviation of {insight.seeds} calibration draws)" if insight.seeds > 1 else ""
    y_label = f"perplexity, {insight.protocol}\nof {insight.text}"
    drawn = {"layers": [insight.layers], "ratios": [insight.ratios], "sensitivity": insight.sensitivity}
    for name, panels in drawn.items():
        if there := [panel for panel in panels if panel is not None]:
            found[name] = draw_panels(there, insight.model + draws, y_label)
    if insight.plans:
        found["map"] = draw_map(insight.plans, insight.model)
    return found


def draw_ranking(ranks: Sequence[ChannelRanks], model: str) -> Figure:
    """Draws the rank of every channel by one criterion against that by another, one panel a matrix."""
    places = [one.module.split(".") for one in ranks]  # layers, index, block, matrix
    layers = list(dict.fromkeys(place[1] for place in places))
    matrices = list(dict.fromkeys(place[-1] for place in places))
    with style():
        figure = new_figure(2.1 * len(matrices) + 0.5, 2.1 * len(layers) + 0.9)
        grid = figure.subplots(len(layers), len(matrices), squeeze=False)
        for one, place in zip(ranks, places, strict=True):
            axes = grid[layers.index(place[1])][matrices.index(place[-1])]
            total = len(one.ranks[0])
            axes.plot(*one.ranks, ".", color=BLUE, markersize=max(1.5, min(4.0, 60 / total**0.5)), alpha=0.8,
                      markeredgewidth=0, rasterized=total > _CLOUD)  # fmt: skip
            axes.plot([1, total], [1, total], color=INK, linewidth=0.8, linestyle=":")
            axes.set_title(f"layer {place[1]}, {place[-1]}\nrank correlation {one.correlation:.2f}", fontsize=8.5)
            axes.set(xticks=[1, total], yticks=[1, total], aspect="equal")
            axes.tick_params(labelsize=8)
        first, second = ranks[0].criteria
        figure.supxlabel(f"rank by {first} (large: important)")
        figure.supylabel(f"rank by {second}")
        figure.suptitle(f"{model}: how {first} and {second} rank the channels")
    return figure


def draw_panels(panels: Sequence[Panel], title: str, y_label: str) -> Figure:
    """Draws perplexity over one or more quantities, one panel a quantity, with the unpruned model's dashed."""
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    with style():
        figure = new_figure(4.2 * columns if columns > 1 else 6.4, 3.1 * rows + 0.6)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        values = [value for panel in panels for curve in panel.curves for value in curve.mean]
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel)
            if max(values) > _STEEP * min(values):
                _logarithmic(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel(y_label)
        grid[0][0].legend(frameon=False)
        figure.suptitle(title)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set(title=panel.title, xlabel=panel.x_label)
    ticks = sorted({x for curve in panel.curves for x in curve.x})
    if panel.logarithmic:
        axes.set_xscale("log")
        axes.set_xticks(ticks, labels=[f"{x:g}" for x in ticks])
        axes.minorticks_off()
    elif all(float(x).is_integer() for x in ticks) and panel.x_label.startswith("layer"):
        _whole(axes.xaxis)
    axes.axhline(panel.dense, color=INK, linestyle="--", linewidth=1, label="unpruned")
    if panel.current is not None:
        axes.axvline(panel.current, color=INK, linestyle=":", linewidth=1, label="in the other panels")
    for i, curve in enumerate(panel.curves):
        color = PALETTE[i % len(PALETTE)]
        axes.plot(curve.x, curve.mean, color=color, marker=MARKERS[i % len(MARKERS)], markersize=4.5, label=curve.label)
        if any(curve.deviation):
            low, high = ([m + side * d for m, d in zip(curve.mean, curve.deviation, strict=True)] for side in (-1, 1))
            axes.fill_between(curve.x, low, high, color=color, alpha=0.18, linewidth=0)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic ordinate with plain numbers: 5, 10, 20, 50, …"""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _whole(*several: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for axis in several:
        axis.set_major_locator(MaxNLocator(integer=True))


def draw_map(plans: Mapping[str, PruningPlan], model: str) -> Figure:
    """Draws which heads (or KV groups) and channels of every layer stay, one row of panels a plan."""
    with style():
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.patches import Patch

        depth = max(len(plan.layers) for plan in plans.values())
        height = min(max(0.24 * depth, 1.3), 6.5)
        hidden = any(plan.hidden is not None for plan in plans.values())
        heights = [height, 0.35] if hidden else [height]
        figure = new_figure(8.6, (height + (1.45 if hidden else 0.75)) * len(plans) + 0.9)
        ratios: Any = {"width_ratios": [1, 3], "height_ratios": heights * len(plans)}
        grid = figure.subplots(len(plans) * len(heights), 2, squeeze=False, **ratios)
        for (name, plan), row in zip(plans.items(), grid[:: len(heights)], strict=True):
            for axes, kind, words in zip(
                row, ("attention", "mlp"), ("heads or KV groups", "MLP channels"), strict=True
            ):
                _draw_blocks(axes, plan, kind, f"{name}: {words}" if name else words)
        for plan, row in zip(plans.values(), grid[1::2] if hidden else (), strict=False):
            row[0].set_visible(False)
            _draw_hidden(row[1], plan)
        most = max(blocks[kind].total for plan in plans.values() for blocks in plan.layers.values() for kind in blocks)
        if most <= _CELLS:  # one unit a cell
            stays, removed = Patch(color=_STAYS, label="stays"), Patch(color=ORANGE, label="removed")
            figure.legend(handles=[stays, removed], loc="outside lower center", ncols=2, frameon=False)
        else:
            colours = ScalarMappable(Normalize(0, 1), _colours())
            bar = figure.colorbar(colours, ax=grid, location="bottom", shrink=0.35, aspect=30, pad=0.03)
            bar.set_label("share of the units in a cell that stay")
        figure.suptitle(f"{model}: which units stay")
    return figure


def _draw_blocks(axes: Axes, plan: PruningPlan, kind: str, title: str) -> None:
    most = max(blocks[kind].total for blocks in plan.layers.values())
    cells = min(most, _CELLS)
    rows, counts = [], []
    for index, blocks in plan.layers.items():
        kept = blocks[kind]
        gone = index in plan.removed_layers
        rows.append([float("nan")] * cells if gone else _shares(kept.kept, kept.total, cells))
        counts.append("layer removed" if gone else f"{len(kept.kept):,}/{kept.total:,}")
    _show(axes, rows, (0, most, len(rows) - 0.5, -0.5))
    axes.set_title(title)
    axes.set_xlabel("unit", fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    _whole(axes.xaxis, axes.yaxis)
    step = max(1, len(rows) // 16)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(0, len(rows), step), labels=counts[::step])
    right.tick_params(labelsize=7.5, length=0)
    right.spines["right"].set_visible(False)


def _draw_hidden(axes: Axes, plan: PruningPlan) -> None:
    total, kept = (plan.hidden.total, plan.hidden.kept) if plan.hidden else (1, (0,))
    _show(axes, [_shares(kept, total, min(total, _CELLS))], (0, total, 0, 1))
    axes.set(title=f"hidden channels: {len(kept):,}/{total:,}", yticks=[])


def _show(axes: Axes, rows: Sequence[Sequence[float]], extent: tuple[float, float, float, float]) -> None:
    axes.imshow(rows, aspect="auto", interpolation="nearest", cmap=_colours(), vmin=0, vmax=1, extent=extent)
    axes.tick_params(labelsize=8)


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("kept", [ORANGE, "#e8e0d8", _STAYS]).with_extremes(bad="#888888")


def _shares(kept: Sequence[int], total: int, cells: int) -> list[float]:
    """Share of the units of each cell that stay; units are spread evenly over the cells."""
    there, stay = [0] * cells, [0] * cells
    for units, counts in ((range(total), there), (kept, stay)):
        for unit in units:
            counts[unit * cells // total] += 1
    return [s / t if t else stay[-1] for s, t in zip(stay, there, strict=True)]


def draw_agreements(agreements: Sequence[Agreement], model: str) -> Figure:
    """Draws the overlap of kept and of removed units, the dtypes and other changes beside the calibration draws."""
    criteria = list(dict.fromkeys(one.criterion for one in agreements))
    several = len({one.ratio for one in agreements}) > 1
    labels = [f"{one.words}, {100 * one.ratio:g} %" if several else one.words for one in agreements]
    rows = list(dict.fromkeys(labels))
    placed = [(one, rows.index(label)) for one, label in zip(agreements, labels, strict=True)]
    with style():
        figure = new_figure(8.6, 0.3 * len(rows) * max(1, len(criteria) ** 0.5) + 1.9)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, side in zip(panels, ("kept", "removed"), strict=True):
            for i, criterion in enumerate(criteria):
                offset = (i - (len(criteria) - 1) / 2) * 0.6 / len(criteria)
                own = [(one, row + offset) for one, row in placed if one.criterion == criterion]
                overlaps = [getattr(one, side) for one, _ in own]
                spread = [getattr(one, f"{side}_deviation") for one, _ in own]
                look: Any = {"fmt": MARKERS[i % len(MARKERS)], "color": PALETTE[i % len(PALETTE)], "markersize": 5}
                axes.errorbar(overlaps, [y for _, y in own], xerr=spread, capsize=2, label=criterion, **look)
            axes.set(xlim=(0, 1.03), title=f"units {side}", xlabel="overlap (Jaccard); 1: the same units")
            axes.grid(axis="x", color=INK, alpha=0.12)
        panels[0].set_yticks(range(len(rows)), labels=rows)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        figure.suptitle(f"{model}: does the choice of units survive?")
    return figure
