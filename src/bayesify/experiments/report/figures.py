"""Which figures a group has, under which topic, and the sentence below each."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from bayesify.experiments.report.groups import Group
from bayesify.experiments.report.plots.calibration import (
    interval_calibration,
    reliability_diagrams,
    risk_coverage,
)
from bayesify.experiments.report.plots.lines import Curve, Styles, curves
from bayesify.experiments.report.plots.ood import FEW_BANDS, far_away, roc_curves, roc_pair
from bayesify.experiments.report.plots.price import cost_against_quality
from bayesify.experiments.report.plots.privacy import membership_roc
from bayesify.experiments.report.plots.robustness import (
    attack_curves,
    family_curves,
    severity_curves,
)
from bayesify.experiments.report.style import GRID, INK, MUTED, PALETTE, PAPER


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading and the sentence under it."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Pair:
    """Two groups, each judged on the data of the other."""

    there: Group
    back: Group

    @property
    def title(self) -> str:
        """Both data sets and the model."""
        return f"{self.there.data} against {self.back.data}, and back ({self.there.model})"


def figures(group: Group, styles: Styles) -> dict[str, tuple[Figure, ...]]:
    """The figures of a group by topic (`columns.TOPICS`); a topic without figures is missing."""
    made = {
        topic: tuple(
            Figure(title, Markup(themed(svg)), caption(group))
            for title, draw, caption in drawers
            if (svg := draw(group, styles)) is not None
        )
        for topic, drawers in DRAWERS.items()
    }
    return {topic: each for topic, each in made.items() if each}


def pairs(groups: list[Group]) -> list[Pair]:
    """Groups of the same model and split, each of whose foreign data are the other's own."""
    return [
        Pair(there, back)
        for number, there in enumerate(groups)
        for back in groups[number + 1 :]
        if (there.model, there.split) == (back.model, back.split)
        and (there.data, there.ood) == (back.ood, back.data)
    ]


def pair_figure(pair: Pair, styles: Styles) -> Figure | None:
    """ROC curves in both directions; None where one has none."""
    svg = roc_pair(pair.there, pair.back, styles)
    if svg is None:
        return None
    return Figure(
        pair.title,
        Markup(themed(svg)),
        "The same two data sets in both roles, by the entropy of the predictive. What is foreign "
        "to one is what the other was trained on: a method that knows its own data is good in "
        f"both. {_BANDS}",
    )


def themed(svg: str) -> str:
    """Colours by name instead of by value, so that the page's light or dark scheme decides."""
    named = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper"}
    named |= {color: f"c{i}" for i, color in enumerate(PALETTE)}
    for color, name in named.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg


_BANDS = "Bars and bands are standard errors."


def _said(text: str) -> Callable[[Group], str]:
    return lambda group: text


def _foreign(group: Group) -> str:
    return (
        f"Telling {group.data} (ID) from {group.ood} (OOD) by the uncertainty of the predictive. "
        f"The nearer the upper left corner, the better. {_BANDS}"
    )


def _attacks(group: Group) -> str:
    first = _first(group, "robustness")
    norm = {"linf": "largest change of any input", "l2": "Euclidean length of the change"}
    size = norm.get(str(first.get("norm")), str(first.get("norm", "not recorded")))
    return (
        f"Size: {size}. {_settings(first, 'examples', 'steps', 'restarts', 'gradient_samples')}. "
        "At size 0 the inputs are clean. An attack is a search: a better one may do more harm. "
        f"{_BANDS}"
    )


def _corruption(group: Group) -> str:
    first = _first(group, "corruption")
    return (
        f"Mean over {len(first.get('families') or {})} kinds of corruption; at severity 0 the "
        f"inputs are clean. {_settings(first, 'examples', 'num_samples')}. {_BANDS}"
    )


def _membership(group: Group) -> str:
    first, shadows = _first(group, "membership"), _first(group, "lira")
    told = [f"Judged on {_settings(first, 'members', 'others')}."] if first else []
    told += [f"LiRA: {_settings(shadows, 'shadows', 'examples')}."] if shadows else []
    return (
        "Up and to the left is worse: the attacker finds more of the training data. On the dashed "
        f"line it guesses. {' '.join(told)} {_BANDS}"
    )


def _far_away(group: Group) -> str:
    few = sum(bool(curves(row, "far_away")) for row in group.rows) <= FEW_BANDS
    shown = "shaded: the middle 80 % of directions; " if few else ""
    return (
        "Largest probability of the predictive along straight lines away from the data, mean over "
        f"directions; {shown}bars: standard errors. Single markers on the right are limits at "
        "infinite distance. A model that knows what it does not know is not sure there."
    )


def _first(group: Group, name: str) -> Curve:
    found = [curve for row in group.rows for curve in curves(row, name)]
    return found[0] if found else {}


def _settings(curve: Curve, *names: str) -> str:
    """What a part was measured with: "450 examples, 10 steps"."""
    called = {"num_samples": "weight samples", "gradient_samples": "weight samples a gradient"}
    told = [
        _count(curve[name], called.get(name, name))
        for name in names
        if isinstance(curve.get(name), int)
    ]
    return ", ".join(told) or "settings not recorded"


def _count(number: int, what: str) -> str:
    return f"{number} {what.removesuffix('s') if number == 1 else what}"


_PRICE = (
    "Down and to the left is better and cheaper. Filled: no other method is at least as good in "
    "both and better in one (the Pareto front, the thin line). Bars are standard errors; the front "
    "is that of the means."
)

Drawer = tuple[str, Callable[[Group, Styles], str | None], Callable[[Group], str]]

DRAWERS: dict[str, tuple[Drawer, ...]] = {
    "quality": (
        (
            "Reliability",
            reliability_diagrams,
            _said(
                "Bars: share of right predictions at each confidence. On the dashed line a model "
                "is right as often as it says; bars below it mean over-confidence. Underneath: how "
                "many predictions have that confidence."
            ),
        ),
        (
            "Risk and coverage",
            risk_coverage,
            _said(
                f"Errors that are left when unsure predictions are refused; low is best. {_BANDS}"
            ),
        ),
        (
            "Calibration of intervals",
            interval_calibration,
            _said(
                "Share of targets inside central intervals. On the dashed line it is as large as "
                f"it should be; below it the intervals are too narrow. {_BANDS}"
            ),
        ),
    ),
    "foreign": (("Recognising foreign data", roc_curves, _foreign),),
    "attacks": (("Quality under attack", attack_curves, _attacks),),
    "corruption": (
        ("Quality by severity", severity_curves, _corruption),
        ("Kinds of corruption", family_curves, _said(f"Accuracy for each kind. {_BANDS}")),
    ),
    "membership": (("Finding training data", membership_roc, _membership),),
    "certificates": (("Confidence far away", far_away, _far_away),),
    "cost": (("Quality and its price", cost_against_quality, _said(_PRICE)),),
}
"""By topic: heading, figure and caption of each figure."""
