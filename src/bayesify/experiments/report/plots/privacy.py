"""What an attacker learns of the training data: ROC of membership inference on log axes.

Both axes are logarithmic since an attack matters by the members it finds with few false accusations
(Carlini et al. 2022, arXiv 2112.03570); on the diagonal it guesses.
"""

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
    diagonal,
    draw,
    legend_inside,
    lines,
    points,
    salt,
    titled,
)
from bayesify.experiments.report.plots.ood import at
from bayesify.experiments.report.style import new_figure, plain, settings, to_svg

LOWEST = 1e-3
"""Rates below are not drawn: few experiments have the examples to measure them."""

RATES = np.geomspace(LOWEST, 1, 121)


def membership_roc(group: Group, styles: Styles) -> str | None:
    """Members found against others accused: by the loss, and by shadow models where measured."""
    panels = {
        "threshold on the loss": (lines(group, "membership", _by_loss), "membership_auc"),
        "likelihood ratio (LiRA)": (lines(group, "lira", _rates), "lira_auc"),
    }
    panels = {title: each for title, each in panels.items() if each[0]}
    if not panels:
        return None
    with settings():
        figure = new_figure(4.1 * len(panels) + 0.2, 4.15)
        drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, (found, name)) in zip(drawn, panels.items(), strict=True):
            _roc(axes, group, found, name, styles)
            titled(axes, title)
        drawn[0].set_ylabel("members found (true positive rate)")
        return to_svg(figure, salt("membership", group))


def _roc(axes: Axes, group: Group, found: list[Line], name: str, styles: Styles) -> None:
    plain(axes)
    axes.set(xscale="log", yscale="log", xlim=(LOWEST, 1), ylim=(LOWEST, 1), box_aspect=1)
    diagonal(axes, LOWEST)
    means = {row.label: row.mean(name) for row in group.rows}
    for place, line in enumerate(found):
        told = f"{column(name).text(means[line.label])}  {line.label}"
        draw(axes, line, styles[line.label], place=place, label=told)
    percent = FuncFormatter(lambda rate, _: f"{100 * rate:g} %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percent)
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("others accused (false positive rate)")
    legend_inside(axes, "AUC %")


def _by_loss(curve: Curve) -> Points | None:
    return _rates(curve.get("loss") or {})


def _rates(curve: Curve) -> Points | None:
    found = points(curve, "fpr", "tpr")
    return None if found is None else (RATES, at(RATES, *found))
