"""How figures look: one palette, one kind of axes, one way to SVG.

The palette is that of Okabe and Ito (2008, "Color universal design") without black and yellow, and
with two tones added; neighbours stay apart for the colour-blind. A method keeps its colour, marker
and dash through a whole page, so that a figure can be read without colour.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2328", "#656d76", "#d8dee4", "#ffffff"
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7a7f87",
    "#882255",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", "--", ":", "-.")

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
    "svg.hashsalt": "bayesify",  # the same figure is the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Style:
    """How one method is drawn."""

    color: str
    marker: str
    dash: str


def styles(labels: list[str]) -> dict[str, Style]:
    """A style for each label by its place in the list; 64 differ.

    Neighbours differ in colour, marker and dash, so that they stay apart in grey print as well.

    >>> styles(["map", "stf"])["stf"].color
    '#d55e00'
    """
    rounds = [divmod(i, len(PALETTE)) for i in range(len(labels))]
    return {
        label: Style(PALETTE[k], MARKERS[(k + r) % len(MARKERS)], DASHES[(k + r) % len(DASHES)])
        for label, (r, k) in zip(labels, rounds, strict=True)
    }


@contextmanager
def settings() -> Iterator[None]:
    """Our fonts and SVG options while a figure is made; the user's come back afterwards."""
    with mpl.rc_context(SETTINGS):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, at the resolution of SVG, with nothing behind it."""
    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def plain(axes: Axes, *, grid: str = "both") -> None:
    """Thin grid behind the data, two quiet spines, no tick marks. Changes `axes`."""
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(visible=True, axis=grid, which="major", color=GRID, linewidth=0.6)  # pyright: ignore[reportArgumentType]
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
        spine.set_linewidth(0.8)
    axes.tick_params(which="both", length=0, colors=MUTED, pad=4)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.title.set_color(INK)


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element: deterministic, without ids that could clash on a page."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r'<g id="[^"]*"', "<g", svg).strip()
