"""The figures: reliability diagrams, ROC curves, cost against quality.

Each is a function of a group that returns an SVG string, or None when the records hold nothing to
draw. No pyplot, no global state.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bayesify.report.columns import column
from bayesify.report.groups import Group, Row
from bayesify.report.labels import Label, place_labels
from bayesify.report.style import INK, MUTED, Style, new_figure, plain, settings, to_svg

Styles = dict[str, Style]


def reliability_diagrams(group: Group, styles: Styles) -> str | None:
    """One small diagram per method: accuracy by confidence over a histogram of confidence.

    Bins are pooled over seeds: counts add up, confidence and accuracy are weighted by them.
    """
    rows = [row for row in group.rows if _curves(row, "reliability")]
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
        return to_svg(figure, f"reliability {group.data} {group.model}")


def roc_curves(group: Group, styles: Styles) -> str | None:
    """ROC of telling ID from OOD data, one curve per method (mean over seeds at equal FPR)."""
    rows = [row for row in group.rows if _curves(row, "roc")]
    if not rows:
        return None
    rows.sort(key=lambda row: -(row.mean("ood_auroc") or 0))
    with settings():
        figure = new_figure(6.2, 4.0)
        axes = figure.add_subplot()
        plain(axes)
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, dashes=(3, 3))
        grid = np.linspace(0, 1, 401)
        for row in rows:
            style = styles[row.label]
            tpr = np.mean([_at(grid, curve) for curve in _curves(row, "roc")], axis=0)
            auroc = column("ood_auroc").text(row.mean("ood_auroc"))
            axes.plot(
                np.concatenate([[0], grid]),
                np.concatenate([[0], tpr]),
                color=style.color,
                ls=style.dash,
                lw=1.7,
                label=f"{auroc}  {row.label}",
                solid_joinstyle="round",
            )
        axes.set(
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.02),
            xlabel="OOD taken for ID (false positive rate)",
            ylabel="ID recognised (true positive rate)",
            box_aspect=1,
        )
        legend = axes.legend(
            title="AUROC %",
            loc="center left",
            bbox_to_anchor=(1.03, 0.5),
            frameon=False,
            labelcolor=INK,
            handlelength=2.2,
            labelspacing=0.6,
            alignment="left",
        )
        legend.get_title().set_color(MUTED)
        return to_svg(figure, f"roc {group.data} {group.model}")


def cost_against_quality(group: Group, styles: Styles) -> str | None:
    """NLL against time per prediction and against trained parameters; bars are standard errors."""
    costs = [
        ("milliseconds_per_prediction", "time per prediction"),
        ("trainable_parameters", "trained parameters"),
    ]
    drawable = [each for each in costs if len(_points(group, each[0])) > 1]
    if not drawable:
        return None
    with settings():
        figure = new_figure(4.7 * len(drawable), 3.5)
        panels = figure.subplots(1, len(drawable), sharey=True, squeeze=False)[0]
        for axes, (name, title) in zip(panels, drawable, strict=True):
            _scatter(axes, group, name, styles)
            axes.set_xlabel(title)
        panels[0].set_ylabel("NLL, nats per example (lower is better)")
        _label_points(figure, panels, group, [name for name, _ in drawable], styles)
        return to_svg(figure, f"cost {group.data} {group.model}")


def _reliability(upper: Axes, lower: Axes, row: Row, style: Style, *, first: bool) -> None:
    confidence, accuracy, count = _pooled(_curves(row, "reliability"))
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


def _scatter(axes: Axes, group: Group, name: str, styles: Styles) -> None:
    plain(axes)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.14)
    for label, (x, y, error) in _points(group, name).items():
        style = styles[label]
        axes.errorbar(
            x, y, yerr=error, fmt=style.marker, ms=7, color=style.color, elinewidth=1.2, mew=0
        )
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    write = column(name).text
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: write(x).replace(".0", "")))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label_points(
    figure: Figure, panels: Sequence[Axes], group: Group, names: list[str], styles: Styles
) -> None:
    for axes, name in zip(panels, names, strict=True):
        points = _points(group, name)
        place_labels(
            figure,
            axes,
            [Label(x, y, label, styles[label].color) for label, (x, y, _) in points.items()],
        )


def _points(group: Group, name: str) -> dict[str, tuple[float, float, float | None]]:
    """(cost, NLL, its standard error) of every method that has both; a log axis shows no zero."""
    found = {row.label: (row.mean(name), row.estimate("nll")) for row in group.rows}
    return {
        label: (cost, nll.mean, nll.standard_error)
        for label, (cost, nll) in found.items()
        if cost is not None and cost > 0 and nll is not None
    }


def _curves(row: Row, name: str) -> list[dict[str, list[float]]]:
    found = [(run.get("curves") or {}).get(name) for run in row.runs]
    return [curve for curve in found if curve]


def _pooled(curves: list[dict[str, list[float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.array([curve["count"] for curve in curves], dtype=float)
    total = counts.sum(0)
    weights = counts / np.maximum(total, 1)
    confidence = (weights * np.array([curve["confidence"] for curve in curves])).sum(0)
    accuracy = (weights * np.array([curve["accuracy"] for curve in curves])).sum(0)
    return confidence, accuracy, total


def _at(grid: np.ndarray, curve: dict[str, list[float]]) -> np.ndarray:
    """TPR at the given FPR; where the curve rises vertically, its upper end."""
    fpr, tpr = np.array(curve["fpr"]), np.array(curve["tpr"])
    last = np.append(np.diff(fpr) > 0, True)
    return np.interp(grid, fpr[last], tpr[last])
