"""Is the model as good as it says? Reliability, interval calibration, risk against coverage."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bayesify.experiments.report.columns import column
from bayesify.experiments.report.groups import Group, Row
from bayesify.experiments.report.plots.lines import (
    Curve,
    Points,
    Styles,
    curves,
    diagonal,
    draw,
    labels_of,
    legend_beside,
    lines,
    points,
    salt,
)
from bayesify.experiments.report.style import INK, MUTED, Style, new_figure, plain, settings, to_svg

COVERAGES = np.linspace(0.01, 1, 100)


def reliability_diagrams(group: Group, styles: Styles) -> str | None:
    """One small diagram per method: accuracy by confidence over a histogram of confidence.

    Bins are pooled over seeds: counts add up, confidence and accuracy are weighted by them.
    """
    rows = [row for row in group.rows if curves(row, "reliability")]
    if not rows:
        return None
    across = min(4, len(rows))
    down = math.ceil(len(rows) / across)
    with settings():
        figure = new_figure(2.45 * across + 0.3, 2.95 * down)
        heights = [4, 1, 0.15] * down  # diagram, histogram, air
        grid = figure.add_gridspec(3 * down - 1, across, height_ratios=heights[:-1])
        for place, row in enumerate(rows):
            i, j = divmod(place, across)
            upper = figure.add_subplot(grid[3 * i, j])
            lower = figure.add_subplot(grid[3 * i + 1, j], sharex=upper)
            _reliability(upper, lower, row, styles[row.label], first=j == 0)
        return to_svg(figure, salt("reliability", group))


def risk_coverage(group: Group, styles: Styles) -> str | None:
    """Share of errors among the most confident predictions, by how many are kept."""
    found = lines(group, "risk_coverage", _risk)
    if not found:
        return None
    with settings():
        figure = new_figure(6.4, 3.4)
        axes = figure.add_subplot()
        plain(axes)
        for place, line in enumerate(found):
            draw(axes, line, styles[line.label], place=place)
        axes.set(
            xlim=(0, 1.01),
            xlabel="coverage: share of predictions kept, the most confident first",
            ylabel="risk: share of errors",
        )
        axes.set_ylim(bottom=0)
        legend_beside(figure, labels_of([found]), styles)
        return to_svg(figure, salt("risk coverage", group))


def interval_calibration(group: Group, styles: Styles) -> str | None:
    """Regression: share of targets inside central intervals, by the share that should be."""
    found = lines(group, "intervals", lambda curve: points(curve, "level", "coverage"))
    if not found:
        return None
    with settings():
        figure = new_figure(5.6, 3.7)
        axes = figure.add_subplot()
        plain(axes)
        diagonal(axes)
        for place, line in enumerate(found):
            draw(axes, line, styles[line.label], place=place)
        axes.set(
            xlim=(0, 1), ylim=(0, 1.01), box_aspect=1, xlabel="nominal level", ylabel="coverage"
        )
        legend_beside(figure, labels_of([found]), styles)
        return to_svg(figure, salt("intervals", group))


def _risk(curve: Curve) -> Points | None:
    """Risk on a common grid of coverages, which thinned curves do not share."""
    found = points(curve, "coverage", "risk")
    return None if found is None else (COVERAGES, np.interp(COVERAGES, *found))


def _reliability(upper: Axes, lower: Axes, row: Row, style: Style, *, first: bool) -> None:
    confidence, accuracy, count = _pooled(curves(row, "reliability"))
    bins = len(count)
    centre, filled = (np.arange(bins) + 0.5) / bins, count > 0
    plain(upper)
    plain(lower, grid="none")
    bar: dict[str, Any] = {"width": 0.88 / bins, "linewidth": 0}
    upper.bar(centre[filled], accuracy[filled], color=style.color, alpha=0.55, **bar)
    upper.plot([0, 1], [0, 1], color=MUTED, lw=0.9, dashes=(3, 3))
    upper.plot(confidence[filled], accuracy[filled], "o", ms=2.8, color=style.color, mew=0)
    ticks = {"ticks": [0, 0.5, 1], "labels": ["0", ".5", "1"]}
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.set_xticks(**ticks)
    upper.set_yticks(**ticks)
    upper.set_title(row.label, loc="left", fontweight="bold", color=INK)
    upper.tick_params(labelbottom=False, labelleft=first)
    ece = column("ece").text(row.mean("ece"))
    upper.text(0.04, 0.95, f"ECE {ece} %", color=MUTED, va="top", transform=upper.transAxes)
    lower.bar(centre, count / count.sum(), color=style.color, alpha=0.55, **bar)
    lower.set(ylim=(0, 1), yticks=[0, 1], xlabel="confidence")
    lower.tick_params(labelleft=first)
    lower.spines["left"].set_visible(False)
    if first:
        upper.set_ylabel("accuracy")
        lower.set_ylabel("share")


def _pooled(found: list[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.array([curve["count"] for curve in found], dtype=float)
    total = counts.sum(0)
    weights = counts / np.maximum(total, 1)
    confidence = (weights * np.array([curve["confidence"] for curve in found])).sum(0)
    accuracy = (weights * np.array([curve["accuracy"] for curve in found])).sum(0)
    return confidence, accuracy, total
