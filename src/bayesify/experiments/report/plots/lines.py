"""What the figures share: curves averaged over runs, lines that differ without colour, legends.

A curve is averaged point by point over the runs of a row, as their numbers are (`groups`): seeds
within a fold first. Runs whose grid differs from that of the latest run are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesify.experiments.report.groups import Group, Row
from bayesify.experiments.report.style import INK, MUTED, Style

Styles: TypeAlias = dict[str, Style]
Curve: TypeAlias = dict[str, Any]
Points: TypeAlias = tuple[np.ndarray, np.ndarray]
"""x and y of a curve, of equal length."""

FEW = 12
"""Up to so many points are shown one by one, with bars; more make a line with a band."""


@dataclass(frozen=True)
class Line:
    """The mean curve of a row.

    Args:
        label: Of the row.
        x: The common grid.
        y: Mean over the runs.
        error: Its standard error; None for a single run.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None


def curves(row: Row, name: str) -> list[Curve]:
    """The curves of that name of the runs that have one."""
    found = [(run.get("curves") or {}).get(name) for run in row.runs]
    return [curve for curve in found if curve]


def mean_line(row: Row, name: str, read: Callable[[Curve], Points | None]) -> Line | None:
    """The mean over runs of what `read` finds in the curves `name`; None where it finds nothing."""
    found: list[tuple[int | None, Points]] = []
    for run in row.runs:
        curve = (run.get("curves") or {}).get(name)
        if curve and (points := read(curve)) is not None and len(points[0]):
            found.append((run.get("fold"), points))
    if not found:
        return None
    x = found[-1][1][0]
    folds: dict[int | None, list[np.ndarray]] = {}
    for fold, (other, y) in found:
        if np.array_equal(x, other):
            folds.setdefault(fold, []).append(y)
    each = (
        next(iter(folds.values())) if len(folds) == 1 else [np.mean(y, 0) for y in folds.values()]
    )
    error = np.std(each, axis=0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else None
    return Line(row.label, x, np.mean(each, axis=0), error)


def lines(group: Group, name: str, read: Callable[[Curve], Points | None]) -> list[Line]:
    """`mean_line` of every row that has one."""
    found = [mean_line(row, name, read) for row in group.rows]
    return [line for line in found if line is not None]


def points(curve: Curve | None, x: str, y: str) -> Points | None:
    """Two lists of a curve as arrays; None where one is missing. What is not finite is NaN."""
    if not curve or not curve.get(x) or not curve.get(y):
        return None
    return np.array(curve[x], dtype=float), np.array(curve[y], dtype=float)


def draw(axes: Axes, line: Line, style: Style, *, place: int = 0, label: str | None = None) -> None:
    """One line: bars of standard errors where the points are few, else a band. Changes `axes`.

    Args:
        axes: Drawn on.
        line: What to draw.
        style: Its colour, marker and dash.
        place: Of the line among its neighbours; their markers are not put at the same places.
        label: For a legend; None: none.
    """
    look: dict[str, Any] = {"color": style.color, "ls": style.dash, "marker": style.marker}
    look |= {"lw": 1.6, "ms": 4.6, "mew": 0, "label": label or "_"}
    if len(line.x) <= FEW:
        bars = axes.errorbar(line.x, line.y, yerr=line.error, elinewidth=1, capsize=0, **look)
        for bar in bars.lines[2]:
            bar.set_linestyle("-")
        return
    axes.plot(line.x, line.y, markevery=_spread(place), solid_joinstyle="round", **look)
    if line.error is not None:
        low, high = line.y - line.error, line.y + line.error
        axes.fill_between(line.x, low, high, color=style.color, alpha=0.14, lw=0)


def diagonal(axes: Axes, low: float = 0.0) -> None:
    """The dashed line from (low, low) to (1, 1). Changes `axes`."""
    axes.plot([low, 1], [low, 1], color=MUTED, lw=0.8, dashes=(3, 3), label="_")


def legend_beside(figure: Figure, labels: Sequence[str], styles: Styles) -> None:
    """A legend of the methods to the right of all panels. Changes `figure`."""
    handles = [
        Line2D(
            [], [], color=styles[label].color, ls=styles[label].dash, marker=styles[label].marker,
            lw=1.6, ms=4.6, mew=0, label=label,
        )
        for label in labels
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside right upper", frameon=False, labelcolor=INK,
        handlelength=3, labelspacing=0.7, fontsize=9,
    )  # fmt: skip


def legend_inside(axes: Axes, title: str) -> None:
    """A legend in the lower right corner of the panel, over a veil. Changes `axes`."""
    legend = axes.legend(
        title=title, loc="lower right", fontsize=8, title_fontsize=8, labelcolor=INK,
        handlelength=2.8, labelspacing=0.4, alignment="left", framealpha=0.8, edgecolor="none",
    )  # fmt: skip
    legend.get_title().set_color(MUTED)


def titled(axes: Axes, title: str) -> None:
    """A bold title above the left end of the panel. Changes `axes`."""
    axes.set_title(title, loc="left", fontweight="bold", color=INK)


def labels_of(found: Sequence[Sequence[Line]]) -> list[str]:
    """The labels of all lines, each once, in the order they come."""
    return list(dict.fromkeys(line.label for each in found for line in each))


def salt(kind: str, group: Group) -> str:
    """A name that no other figure of a page has, for ids that do not clash."""
    return " ".join([kind, group.data, group.model, group.split, group.ood or ""])


def _spread(place: int) -> tuple[float, float]:
    """Markers at even distances along the line, shifted from line to line."""
    return 0.03 + 0.035 * (place % 5), 0.19
