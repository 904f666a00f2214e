"""How every figure looks, and how it is written: as a file, or as part of a page.

Colours are those of Okabe and Ito, which readers with any kind of colour vision tell apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ..errors import ConfigError
from ..files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)
MARKERS = "osD^vP"  # every curve has one of its own, besides its colour
INK = "#1a1a1a"  # text and lines; becomes the page's own colour where a figure stands in a page


_DOTS = 150  # per inch, of pictures, and of clouds of points in drawings


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
    for file in files:
        drawn = io.BytesIO()
        with style():
            metadata = {"Date": None} if file.suffix == ".svg" else None
            figure.savefig(drawn, format=file.suffix[1:], dpi=_DOTS, metadata=metadata)
        write_bytes(file, drawn.getvalue())
    return files


def inline_svg(figure: Figure, label: str) -> Markup:
    """Returns the figure as an `<svg>` element for a page: in the page's colour of text, and named for screen readers.

    Args:
        figure: drawn by this module.
        label: what it shows, in a line.
    """
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
