"""Same accuracy, different weights: what came of retraining each layer of a network alone.

A row per layer, in the order in which they run. Left: how alike the retrained weights are, the
reason to make a layer Bayesian. Right: how well each retraining predicts, without which unlike
weights would say nothing. The figure stands alone, on white.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesify.report.plots.lines import titled
from bayesify.report.style import (
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
    name = {"rmse": "RMSE"}.get(diagnosis["score_name"], diagnosis["score_name"].replace("_", " "))
    for row, layer in enumerate(diagnosis["layers"]):
        _strip(axes, row, _finite(layer["scores"]), layer["mean"]["score"], marked=row == marked)
    given = _finite([diagnosis["given"]])
    for each in given:
        axes.axvline(each, color=INK, lw=1, dashes=(4, 2.5), zorder=1)
    found = [each for layer in diagnosis["layers"] for each in _finite(layer["scores"])] + given
    is_error = diagnosis["score_name"] == "rmse"
    axes.set_xlim(*_limits(found, is_error=is_error))
    part = f" on the {diagnosis['split']} part" if diagnosis.get("split") else ""
    axes.set_xlabel(f"{name}{part}; {'lower' if is_error else 'higher'} is better")
    titled(axes, name[:1].upper() + name[1:])
    axes.tick_params(axis="y", labelleft=False)


def _strip(
    axes: Axes, row: int, values: Sequence[float], mean: float | None, *, marked: bool
) -> None:
    """One row: a dot for each value, a bar at the mean, and the mean as a number at the edge.

    Equal values are told apart by their heights.
    """
    color = MARKED if marked else COLOR
    heights = row + np.linspace(-0.24, 0.24, len(values)) if len(values) > 1 else [row]
    axes.plot(values, heights, "o", ms=3.6, mew=0, color=color, alpha=0.5, zorder=3)
    if mean is not None:
        axes.plot([mean, mean], [row - 0.36, row + 0.36], color=color, lw=2.2, zorder=4)
    axes.text(
        1.015, row, "-" if mean is None else f"{mean:.3f}", transform=axes.get_yaxis_transform(),
        va="center", fontsize=8, color=INK if marked else MUTED,
        fontweight="bold" if marked else "normal",
    )  # fmt: skip


def _diamond(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "D", ms=4.6, mew=1.2, mec=INK, mfc=PAPER, zorder=5)


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
    some = "inputs that vary" if is_partial else ""
    pairs = math.comb(starts, 2)
    dots: dict[str, Any] = {"ls": "", "marker": "o", "ms": 3.6, "mew": 0, "alpha": 0.5}
    diamond: dict[str, Any] = {"ls": "", "marker": "D", "ms": 4.6, "mew": 1.2, "mfc": PAPER}
    what = "pair of retrainings" if pairs > 1 else "the pair of retrainings"
    handles = [
        Line2D([], [], color=COLOR, label=f"{what} (left), one retraining (right)", **dots),
        Line2D([], [], ls="", marker="|", ms=9, mew=2.2, color=COLOR, label="mean, in figures"),
        Patch(color=BAND, label="least similar weights"),
        Line2D([], [], mec=INK, label="mean with the weights as given (left)", **diamond),
        Line2D([], [], color=INK, lw=1, dashes=(4, 2.5), label="network as given (right)"),
    ]
    note = f"Each layer retrained alone {starts} times, from random starts."
    if some:
        note += " Pairs of linear layers: only weights of inputs that vary."
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=8,
        labelcolor=INK, title=note, title_fontsize=8, alignment="left", columnspacing=2,
    )  # fmt: skip
    legend.get_title().set_color(MUTED)


def _is_partial(layer: Layer) -> bool:
    return bool(layer["varying_correlations"])


def _finite(values: Sequence[float | None]) -> list[float]:
    return [each for each in values if each is not None]
