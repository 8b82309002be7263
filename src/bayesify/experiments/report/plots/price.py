"""Quality and its price: NLL against costs, with the methods that no other beats in both."""

import math
from collections.abc import Mapping
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bayesify.experiments.report.columns import column
from bayesify.experiments.report.groups import Group
from bayesify.experiments.report.labels import Label, Segment, place_labels
from bayesify.experiments.report.plots.lines import Styles, salt
from bayesify.experiments.report.style import MUTED, PAPER, new_figure, plain, settings, to_svg

COSTS = {
    "milliseconds_per_prediction": "time per prediction",
    "trainable_parameters": "trained parameters",
    "disk_bytes": "size on disk",
}


def cost_against_quality(group: Group, styles: Styles) -> str | None:
    """NLL against each cost; bars are standard errors, the step line is the Pareto front.

    A method on the front is filled: no other has both a lower mean NLL and a lower or equal cost.
    """
    drawable = [name for name in COSTS if len(_points(group, name)) > 1]
    if not drawable:
        return None
    with settings():
        figure = new_figure(4.1 * len(drawable) + 0.4, 3.5)
        panels = figure.subplots(1, len(drawable), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, drawable, strict=True):
            _scatter(axes, group, name, styles)
            axes.set_xlabel(COSTS[name])
        panels[0].set_ylabel("NLL, nats per example (lower is better)")
        for axes, name in zip(panels, drawable, strict=True):
            points = _points(group, name)
            line = _front_line(axes, points)
            labels = [
                Label(x, y, label, styles[label].color) for label, (x, y, _) in points.items()
            ]
            place_labels(figure, axes, labels, line)
        return to_svg(figure, salt("cost", group))


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The labels of the Pareto front of (cost, loss), both to be low, by increasing cost.

    A point is left out if another is at least as good in both and better in one.

    Example:
        >>> front({"a": (1.0, 3.0), "b": (2.0, 1.0), "c": (3.0, 2.0), "d": (2.0, 4.0)})
        ['a', 'b']
    """
    return [
        label
        for label, (cost, loss) in sorted(points.items(), key=lambda each: each[1])
        if not any(
            c <= cost and other <= loss and (c, other) != (cost, loss)
            for c, other in points.values()
        )
    ]


def _scatter(axes: Axes, group: Group, name: str, styles: Styles) -> None:
    plain(axes)
    axes.set_xscale("log")
    axes.margins(y=0.14)
    points = _points(group, name)
    axes.set_xlim(*_limits([x for x, _, _ in points.values()]))
    best = front({label: (x, y) for label, (x, y, _) in points.items()})
    for label, (x, y, error) in points.items():
        style = styles[label]
        axes.errorbar(
            x, y, yerr=error, fmt=style.marker, ms=6.5, color=style.color, elinewidth=1.2, mew=1.4,
            mfc=style.color if label in best else PAPER, zorder=3,
        )  # fmt: skip
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    write = column(name).text
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: write(x).replace(".0", "")))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _limits(costs: list[float]) -> tuple[float, float]:
    """Ends of a log axis with some air; methods of one price still get an axis."""
    low, high = min(costs), max(costs)
    air = (high / low) ** 0.14 if high > low * 1.01 else 1.5
    return low / air, high * air


def _front_line(axes: Axes, points: dict[str, tuple[float, float, float | None]]) -> list[Segment]:
    """From the upper edge down the front to the right edge. Returns its segments.

    The limits of the axes stay.
    """
    best = front({label: (x, y) for label, (x, y, _) in points.items()})
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    corners = [(points[best[0]][0], top)]
    for label in best:
        x, y, _ = points[label]
        corners += [(x, corners[-1][1]), (x, y)]
    corners.append((right, corners[-1][1]))
    axes.plot(*zip(*corners, strict=True), color=MUTED, lw=0.9, alpha=0.8, zorder=1)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    return [(*start, *end) for start, end in pairwise(corners)]


def _points(group: Group, name: str) -> dict[str, tuple[float, float, float | None]]:
    """(cost, NLL, its standard error) of every method that has both; a log axis shows no zero."""
    found = {row.label: (row.mean(name), row.estimate("nll")) for row in group.rows}
    return {
        label: (cost, nll.mean, nll.standard_error)
        for label, (cost, nll) in found.items()
        if cost is not None and cost > 0 and nll is not None
    }
