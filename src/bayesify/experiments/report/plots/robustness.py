"""Inputs changed on purpose or by accident: quality against size of attack, against severity."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from bayesify.experiments.report.column import FORMATS
from bayesify.experiments.report.groups import Group
from bayesify.experiments.report.plots.lines import (
    Curve,
    Line,
    Points,
    Styles,
    curves,
    draw,
    labels_of,
    legend_beside,
    lines,
    salt,
    titled,
)
from bayesify.experiments.report.style import INK, new_figure, plain, settings, to_svg

ATTACKS = {"fgsm": "FGSM", "pgd": "PGD", "transfer": "transfer"}
MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL, nats per example",
    "ece": "ECE",
}
"""What is drawn, and the name of its axis."""

WIDE = 30
"""An NLL that spans more than this factor is drawn on a log axis."""


def attack_curves(group: Group, styles: Styles) -> str | None:
    """Accuracy (above) and NLL (below) by the size of the attack, a panel per attack."""
    measures = ("accuracy", "nll")
    found = {
        attack: [lines(group, "robustness", _attacked(attack, name)) for name in measures]
        for attack in dict.fromkeys((*ATTACKS, *_names(group, "robustness", "attacks")))
    }
    found = {attack: each for attack, each in found.items() if any(each)}
    if not found:
        return None
    with settings():
        figure = new_figure(2.9 * len(found) + 1.7, 4.9)
        panels = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
        for column, (attack, each) in enumerate(found.items()):
            for axes, drawn, name in zip(panels[:, column], each, measures, strict=True):
                _measure(axes, drawn, name, styles, first=column == 0)
            titled(panels[0, column], ATTACKS.get(attack, attack))
            panels[1, column].set_xlabel("size of the attack, eps")
            _eps_ticks(panels[1, column], found)
        legend_beside(figure, labels_of([line for each in found.values() for line in each]), styles)
        return to_svg(figure, salt("attacks", group))


def severity_curves(group: Group, styles: Styles) -> str | None:
    """Accuracy, NLL and ECE by severity of corruption, averaged over the families."""
    found = {name: lines(group, "corruption", _averaged(name)) for name in MEASURES}
    found = {name: each for name, each in found.items() if each}
    if not found:
        return None
    with settings():
        figure = new_figure(2.9 * len(found) + 1.7, 2.9)
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (name, drawn) in zip(panels, found.items(), strict=True):
            _measure(axes, drawn, name, styles, first=False)
            axes.set(xlabel="severity", xticks=_xs(drawn))
            titled(axes, MEASURES[name])
        legend_beside(figure, labels_of(list(found.values())), styles)
        return to_svg(figure, salt("severity", group))


def family_curves(group: Group, styles: Styles) -> str | None:
    """Accuracy by severity, a small panel for each family of corruption."""
    families = _names(group, "corruption", "families")
    found = {each: lines(group, "corruption", _of_family(each, "accuracy")) for each in families}
    found = {family: each for family, each in found.items() if each}
    if not found:
        return None
    down = math.ceil(len(found) / 5)
    across = math.ceil(len(found) / down)
    with settings():
        figure = new_figure(1.85 * across + 1.9, 1.75 * down + 0.25)
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for place, (family, drawn) in enumerate(found.items()):
            axes = panels.flat[place]
            _measure(axes, drawn, "accuracy", styles, first=False)
            axes.set_xticks(_xs(drawn))
            axes.set_title(family.replace("_", " "), loc="left", fontsize=8.5, color=INK)
            last = place + across >= len(found)
            axes.tick_params(labelbottom=last)
            if last:
                axes.set_xlabel("severity")
            if place % across == 0:
                axes.set_ylabel("accuracy")
        for axes in panels.flat[len(found) :]:
            axes.remove()
        legend_beside(figure, labels_of(list(found.values())), styles)
        return to_svg(figure, salt("families", group))


def _measure(axes: Axes, drawn: list[Line], name: str, styles: Styles, *, first: bool) -> None:
    plain(axes)
    for place, line in enumerate(drawn):
        draw(axes, line, styles[line.label], place=place)
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in drawn] or [np.zeros(0)])
    if name == "nll" and len(values) and 0 < values.min() * WIDE < values.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif name == "ece":
        axes.set_ylim(bottom=0)
    if first:
        axes.set_ylabel(MEASURES[name])


def _eps_ticks(axes: Axes, found: dict[str, list[list[Line]]]) -> None:
    """The sizes that were tried; as 255ths where they are whole numbers of them."""
    eps = np.unique([x for each in found.values() for drawn in each for x in _xs(drawn)])
    told = [FORMATS["budget"](each) for each in eps]
    whole = all(text == "0" or text.endswith("/255") for text in told)
    apart = np.diff(eps).min() > 0.07 * np.ptp(eps) if len(eps) > 1 else True
    if whole and apart:
        axes.set_xticks(eps, [text.removesuffix("/255") for text in told])
        axes.set_xlabel("size of the attack, eps in 1/255")


def _xs(drawn: Sequence[Line]) -> list[float]:
    return sorted({float(x) for line in drawn for x in line.x})


def _names(group: Group, name: str, part: str) -> list[str]:
    """Names of the attacks or families that any run has, in the order they come."""
    found = [curve.get(part) or {} for row in group.rows for curve in curves(row, name)]
    return list(dict.fromkeys(each for parts in found for each in parts))


def _attacked(attack: str, name: str) -> Callable[[Curve], Points | None]:
    def read(curve: Curve) -> Points | None:
        return _points(curve.get("eps"), (curve.get("attacks") or {}).get(attack), name)

    return read


def _of_family(family: str, name: str) -> Callable[[Curve], Points | None]:
    def read(curve: Curve) -> Points | None:
        return _points(curve.get("severities"), (curve.get("families") or {}).get(family), name)

    return read


def _averaged(name: str) -> Callable[[Curve], Points | None]:
    def read(curve: Curve) -> Points | None:
        families = (curve.get("families") or {}).values()
        found = [_points(curve.get("severities"), each, name) for each in families]
        kept = [each for each in found if each is not None]
        if not kept or len(kept) < len(found):
            return None
        return kept[0][0], np.mean([y for _, y in kept], axis=0)

    return read


def _points(x: list[float] | None, values: Curve | None, name: str) -> Points | None:
    if not x or not values or not values.get(name):
        return None
    return np.array(x, dtype=float), np.array(values[name], dtype=float)
