"""Names written next to points so that none covers another name or a point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

Segment: TypeAlias = tuple[float, float, float, float]
"""A line from (x, y) to (x, y) in data coordinates."""

CLEARANCE = 4.0
"""Points (1/72 inch) kept free around a marker."""


@dataclass(frozen=True)
class Label:
    """A name for the point (x, y) in data coordinates."""

    x: float
    y: float
    text: str
    color: str


def place_labels(
    figure: Figure, axes: Axes, labels: Sequence[Label], avoid: Sequence[Segment] = ()
) -> None:
    """Write each label at the nearest free place around its point. Changes `axes`.

    Tries places on growing rings, the right-hand side first, and takes the first that stays inside
    the axes and clear of points, of labels placed before and of the level or upright lines `avoid`;
    if there is none, the first place. Labels far from their point get a thin line to it. The layout
    of the figure is frozen.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles the layout, so that data coordinates mean something
    figure.set_layout_engine("none")  # ... and keep meaning it when labels have come
    points = [_on_canvas(axes, each.x, each.y) for each in labels]
    taken = [
        Bbox.from_extents(x - CLEARANCE, y - CLEARANCE, x + CLEARANCE, y + CLEARANCE)
        for x, y in points
    ]
    taken += [_around(axes, segment) for segment in avoid]
    frame = axes.get_window_extent()
    for label, point in zip(labels, points, strict=True):
        width, height = _size(axes, canvas, label.text)
        boxes = [(place, _box(point, place, width, height)) for place in _places()]
        free = [
            (place, box)
            for place, box in boxes
            if _inside(box, frame) and not any(box.overlaps(other) for other in taken)
        ]
        place, box = (free or boxes)[0]
        taken.append(box)
        _write(axes, label, place)


def _places() -> list[tuple[float, float]]:
    around = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    return [(dx * r, dy * r) for r in (8.0, 14.0, 22.0, 32.0, 44.0) for dx, dy in around]


def _box(
    point: tuple[float, float], place: tuple[float, float], width: float, height: float
) -> Bbox:
    dx, dy = place
    left = point[0] + dx - width * (0.5 - 0.5 * _sign(dx))
    bottom = point[1] + dy - height / 2
    return Bbox.from_bounds(left, bottom, width, height)


def _write(axes: Axes, label: Label, place: tuple[float, float]) -> None:
    far = max(abs(place[0]), abs(place[1])) > 15
    axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=place,
        textcoords="offset points",
        ha={1: "left", 0: "center", -1: "right"}[_sign(place[0])],
        va="center",
        color=label.color,
        fontsize=9,
        arrowprops={"arrowstyle": "-", "color": label.color, "lw": 0.6, "alpha": 0.6, "shrinkB": 4}
        if far
        else None,
    )


def _size(axes: Axes, canvas: FigureCanvasAgg, text: str) -> tuple[float, float]:
    probe = axes.text(0.5, 0.5, text, fontsize=9, transform=axes.transAxes)
    box = probe.get_window_extent(canvas.get_renderer())
    probe.remove()
    return box.width + 2, box.height + 1


def _inside(box: Bbox, frame: Bbox) -> bool:
    return frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def _on_canvas(axes: Axes, x: float, y: float) -> tuple[float, float]:
    x, y = axes.transData.transform((x, y))
    return float(x), float(y)


def _around(axes: Axes, segment: Segment) -> Bbox:
    start, end = _on_canvas(axes, *segment[:2]), _on_canvas(axes, *segment[2:])
    return Bbox.from_extents(
        min(start[0], end[0]) - 1,
        min(start[1], end[1]) - 1,
        max(start[0], end[0]) + 1,
        max(start[1], end[1]) + 1,
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
