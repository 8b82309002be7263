"""Same accuracy, different weights: what came of retraining each layer of a network alone.

A row per layer, in the order in which they run. Left: how alike the retrained weights are, the
reason to make a layer Bayesian. Right: how well each retraining predicts, without which unlike
weights would say nothing. The figure stands alone, on white.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesify.experiments.report.plots.lines import titled
from bayesify.experiments.report.style import (
    GRID,
    INK,
    MUTED,
    PALETTE,
    PAPER,
    new_figure,
    plain,
    settings,
    to_svg,
)

PANEL = 3.3
"""Inches that a panel is wide; names of layers come on top, however long."""

NARROWEST = 0.1
"""Scores from 0 to 1 get an axis at least this wide, so that chance does not look large."""

DOT: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4, "mew": 0.6, "mec": PAPER, "alpha": 0.75}
DIAMOND: dict[str, Any] = {
    "ls": "",
    "marker": "D",
    "ms": 4.6,
    "mew": 1.2,
    "mec": INK,
    "mfc": PAPER,
}
COLOR, MARKED, BAND = PALETTE[0], PALETTE[1], "#fbe9df"

Layer = Mapping[str, Any]


def diagnosis_plot(diagnosis: Mapping[str, Any]) -> str:
    """Similarity of weights and score of each retraining, by layer.

    Args:
        diagnosis: What `Diagnosis.to_json()` returns; `split`, if there, is the part judged on.

    Returns:
        An SVG that is readable as a file of its own.
    """
    layers: list[Layer] = diagnosis["layers"]
    names = [layer["name"] or "(model)" for layer in layers]
    marked = [layer["name"] for layer in layers].index(diagnosis["most_disparate"])
    with settings():
        wide = 2 * PANEL + 0.5 + 0.085 * max(map(len, names))  # inches a letter of 8 points takes
        figure = new_figure(wide, 1.75 + (0.34 if len(layers) < 12 else 0.27) * len(layers))
        figure.patch.set(alpha=1, facecolor=PAPER)
        figure.set_layout_engine("constrained", w_pad=0.09, h_pad=0.09)
        left, right = figure.subplots(1, 2, sharey=True)
        for axes in (left, right):
            plain(axes)
            axes.axhspan(marked - 0.5, marked + 0.5, color=BAND, lw=0, zorder=0)
        known = _similarities(left, layers, marked)
        _scores(right, diagnosis, marked)
        left.set_yticks(range(len(layers)), names)
        left.set_ylim(len(layers) - 0.5, -0.5)
        left.tick_params(axis="y", labelcolor=INK)
        left.get_yticklabels()[marked].set(fontweight="bold", color=MARKED)
        _legend(figure, known, starts=diagnosis["starts"])
        return to_svg(figure, "diagnosis")


def _similarities(axes: Axes, layers: Sequence[Layer], marked: int) -> bool:
    """Draw correlations; whether some are of a part of the weights only."""
    lowest = 0.0
    for row, layer in enumerate(layers):
        pairs = _finite(layer["varying_correlations"] or layer["correlations"])
        mean = layer["mean"]["varying_correlation" if _is_partial(layer) else "correlation"]
        given = layer["mean"]["correlation_with_given"]
        _strip(axes, row, pairs, mean, marked=row == marked)
        if given is not None:
            _diamond(axes, given, row)
        lowest = min([lowest, *pairs, *_finite([given])])
    axes.axvline(1, color=GRID, lw=0.8, zorder=1)
    axes.set(xlim=(lowest - 0.04, 1.04), xlabel="correlation; 1: the same weights again")
    titled(axes, "Similarity of weights")
    return any(map(_is_partial, layers))


def _scores(axes: Axes, diagnosis: Mapping[str, Any], marked: int) -> None:
    """Draw the score of each retraining, and that of the network as it was."""
    is_error = diagnosis["score_name"] == "rmse"
    name: str = "RMSE" if is_error else diagnosis["score_name"].replace("_", " ")
    for row, layer in enumerate(diagnosis["layers"]):
        _strip(axes, row, _finite(layer["scores"]), layer["mean"]["score"], marked=row == marked)
    given = _finite([diagnosis["given"]])
    for each in given:
        axes.axvline(each, color=INK, lw=1, dashes=(4, 2.5), zorder=1)
    found = [each for layer in diagnosis["layers"] for each in _finite(layer["scores"])] + given
    axes.set_xlim(*_limits(found, is_error=is_error))
    part = f" on the {diagnosis['split']} part" if diagnosis.get("split") else ""
    axes.set_xlabel(f"{name}{part}; {'lower' if is_error else 'higher'} is better")
    titled(axes, f"{name[0].upper()}{name[1:]}")
    axes.tick_params(axis="y", labelleft=False)


def _strip(
    axes: Axes, row: int, values: Sequence[float], mean: float | None, *, marked: bool
) -> None:
    """One row: a dot for each value, a bar at the mean, and the mean as a number at the edge.

    Equal values are told apart by their heights.
    """
    color = MARKED if marked else COLOR
    reach = 0.24 if len(values) > 1 else 0.0
    heights = row + np.linspace(-reach, reach, len(values))
    if mean is not None:
        axes.plot([mean, mean], [row - 0.36, row + 0.36], color=color, lw=1.8, zorder=3)
    axes.plot(values, heights, mfc=color, zorder=4, **DOT)
    axes.text(
        1.015, row, "-" if mean is None else f"{mean:.3f}", transform=axes.get_yaxis_transform(),
        va="center", fontsize=8, color=INK if marked else MUTED,
        fontweight="bold" if marked else "normal",
    )  # fmt: skip


def _diamond(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, zorder=5, **DIAMOND)


def _limits(values: Sequence[float], *, is_error: bool) -> tuple[float, float]:
    """Ends of the axis: errors from 0; scores around what was found, but not too near to it."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if is_error:
        return 0.0, 1.08 * high or 1.0
    missing = max(0.0, NARROWEST - (high - low))
    top = min(high + missing / 2, max(1.0, high))
    low = min(low, top - NARROWEST)
    air = 0.06 * (top - low)
    return low - air, top + air


def _legend(figure: Figure, is_partial: bool, *, starts: int) -> None:
    """What the marks are, below both panels. Changes `figure`."""
    mean: dict[str, Any] = {"ls": "", "marker": "|", "ms": 9, "mew": 1.8}
    given = "mean with the weights as given (left)"
    handles = [
        Line2D(
            [], [], mfc=COLOR, label="a pair of retrainings (left), a retraining (right)", **DOT
        ),
        Line2D([], [], color=COLOR, label="their mean, the number at the edge", **mean),
        Patch(color=BAND, label="the layer with the least similar weights"),
        Line2D([], [], label=given + (": of all weights" if is_partial else ""), **DIAMOND),
        Line2D([], [], color=INK, lw=1, dashes=(4, 2.5), label="the network as given (right)"),
    ]
    note = f"Each layer retrained alone {starts} times, from random starts."
    if is_partial:
        note += " Dots of linear layers: only weights whose inputs vary."
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=8,
        labelcolor=INK, title=note, title_fontsize=8, alignment="left", columnspacing=2,
    )  # fmt: skip
    legend.get_title().set_color(MUTED)


def _is_partial(layer: Layer) -> bool:
    return bool(layer["varying_correlations"])


def _finite(values: Sequence[float | None]) -> list[float]:
    return [each for each in values if each is not None]
