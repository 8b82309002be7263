"""Telling known from foreign data: ROC curves, and confidence far away from all data."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from bayesify.experiments.report.columns import column
from bayesify.experiments.report.groups import Group
from bayesify.experiments.report.plots.lines import (
    Curve,
    Line,
    Points,
    Styles,
    curves,
    diagonal,
    draw,
    labels_of,
    legend_beside,
    legend_inside,
    lines,
    points,
    salt,
    titled,
)
from bayesify.experiments.report.style import MUTED, new_figure, plain, settings, to_svg

FEW_BANDS = 2
"""More bands than this would hide each other."""

RATES = np.linspace(0, 1, 401)

SCORES = {
    "": "entropy",
    "_mutual_information": "mutual information",
    "_max_prob": "max probability",
}
"""Ends of the names of curves and numbers, and what they score by."""


def roc_curves(group: Group, styles: Styles) -> str | None:
    """ROC of telling ID from OOD data, a panel per score; mean over runs at equal FPR."""
    scores = {end: what for end, what in SCORES.items() if _roc_lines(group, end)}
    if not scores:
        return None
    if group.task == "regression":
        scores = {end: "variance" if not end else what for end, what in scores.items()}
    with settings():
        figure = new_figure(3.75 * len(scores) + 0.2, 3.95)
        panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
        for axes, (end, what) in zip(panels, scores.items(), strict=True):
            _roc(axes, group, end, styles)
            titled(axes, f"by {what}")
        panels[0].set_ylabel("ID recognised (true positive rate)")
        return to_svg(figure, salt("roc", group))


def roc_pair(there: Group, back: Group, styles: Styles) -> str | None:
    """ROC curves of two groups, each judged on the other's data, side by side."""
    if not _roc_lines(there, "") or not _roc_lines(back, ""):
        return None
    with settings():
        figure = new_figure(8.2, 4.15)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, group in zip(panels, (there, back), strict=True):
            _roc(axes, group, "", styles)
            titled(axes, f"trained on {group.data}, judged on {group.ood}")
        panels[0].set_ylabel("ID recognised (true positive rate)")
        return to_svg(figure, salt("pair", there))


def far_away(group: Group, styles: Styles) -> str | None:
    """Largest probability along rays away from the data, with its limit at the right edge.

    With one or two methods, a band holds the middle 80 % of the directions.
    """
    found = lines(group, "far_away", _away)
    if not found:
        return None
    with settings():
        figure = new_figure(7.0, 3.5)
        axes = figure.add_subplot()
        plain(axes)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for place, line in enumerate(found):
            draw(axes, line, styles[line.label], place=place)
            if len(found) <= FEW_BANDS:
                _band(axes, group, line, styles)
        _limits(axes, group, found, styles)
        axes.set(
            ylim=(0, 1.02),
            xlabel="distance from the origin, in typical norms of the data",
            ylabel="mean largest probability",
        )
        legend_beside(figure, labels_of([found]), styles)
        return to_svg(figure, salt("far away", group))


def _roc(axes: Axes, group: Group, end: str, styles: Styles) -> None:
    plain(axes)
    diagonal(axes)
    name = f"ood_auroc{end}"
    means = {row.label: row.mean(name) for row in group.rows}
    found = sorted(_roc_lines(group, end), key=lambda line: -(means[line.label] or 0))
    for place, line in enumerate(found):
        told = f"{column(name).text(means[line.label])}  {line.label}"
        draw(axes, line, styles[line.label], place=place, label=told)
    axes.set(
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.02),
        xlabel="OOD taken for ID (false positive rate)",
        box_aspect=1,
    )
    legend_inside(axes, "AUROC %")


def _roc_lines(group: Group, end: str) -> list[Line]:
    found = lines(group, f"roc{end}", _rates)
    return [
        Line(
            each.label,
            np.append(0, each.x),
            np.append(0, each.y),
            None if each.error is None else np.append(0, each.error),
        )
        for each in found
    ]


def _rates(curve: Curve) -> Points | None:
    found = points(curve, "fpr", "tpr")
    return None if found is None else (RATES, at(RATES, *found))


def at(grid: np.ndarray, fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
    """TPR at the given FPR: along the segments of the curve; where it rises, the upper end."""
    start = np.clip(np.searchsorted(fpr, grid, side="right") - 1, 0, len(fpr) - 1)
    end = np.minimum(start + 1, len(fpr) - 1)
    width = fpr[end] - fpr[start]
    share = np.clip(grid - fpr[start], 0, width) / np.where(width > 0, width, 1)
    return tpr[start] + share * (tpr[end] - tpr[start])


def _away(curve: Curve) -> Points | None:
    found = points(curve, "radius", "mean")
    return None if found is None else (found[0][found[0] > 0], found[1][found[0] > 0])


def _band(axes: Axes, group: Group, line: Line, styles: Styles) -> None:
    row = next(row for row in group.rows if row.label == line.label)
    edges = []
    for name in ("low", "high"):
        read = [points(curve, "radius", name) for curve in curves(row, "far_away")]
        kept = [y[x > 0] for x, y in filter(None, read) if np.array_equal(x[x > 0], line.x)]
        if not kept:
            return
        edges.append(np.mean(kept, axis=0))
    axes.fill_between(line.x, *edges, color=styles[line.label].color, alpha=0.12, lw=0)


def _limits(axes: Axes, group: Group, found: Sequence[Line], styles: Styles) -> None:
    """Markers beyond the largest radius, side by side, where the limits lie."""
    last = max(line.x[-1] for line in found)
    place = last
    for line in found:
        row = next(row for row in group.rows if row.label == line.label)
        read = [curve.get("limit_mean") for curve in curves(row, "far_away")]
        kept = [each for each in read if each is not None]
        if not kept:
            continue
        place *= 1.45
        style = styles[line.label]
        axes.plot(place, np.mean(kept), style.marker, color=style.color, ms=6.5, mew=0)
    if place > last:
        axes.axvline(last * 1.2, color=MUTED, lw=0.7, dashes=(2, 3))
        middle = float(np.sqrt(last * 1.45 * place))
        axes.text(middle, 0.03, "limit", color=MUTED, ha="center", fontsize=8)
        axes.set_xlim(right=place * 1.4)
