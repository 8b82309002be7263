import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text

from bayesify.experiments.report.labels import Label, place_labels
from bayesify.experiments.report.style import new_figure


def place(points, *, log=False, avoid=()):
    figure = new_figure(4, 3)
    axes = figure.add_subplot()
    axes.scatter(*zip(*points, strict=True))
    axes.margins(0.15)
    if log:
        axes.set_xscale("log")
    place_labels(
        figure,
        axes,
        [Label(x, y, f"method {i}", "black") for i, (x, y) in enumerate(points)],
        avoid,
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [each for each in axes.texts if isinstance(each, Annotation)]
    boxes = [Text.get_window_extent(each, canvas.get_renderer()) for each in texts]
    return axes, boxes


@pytest.mark.parametrize("log", [False, True])
def test_crowded_labels_do_not_overlap_and_stay_inside(log):
    points = [(1, 1), (1.02, 1.01), (1.04, 0.99), (5, 3), (5, 3.02), (9, 1), (9.1, 1.03)]
    axes, boxes = place(points, log=log)
    frame = axes.get_window_extent()
    assert len(boxes) == len(points)
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_coinciding_points_get_all_their_labels():
    assert len(place([(1, 1)] * 3 + [(2, 2)])[1]) == 4


def test_labels_keep_off_lines():
    points, line = [(1, 1), (5, 3)], (1, 1, 5, 1)
    level = place(points)[0].transData.transform([line[:2], line[2:]])
    crossed = [box.y0 < level[0, 1] < box.y1 for box in place(points)[1]]
    assert crossed == [True, False]
    axes, boxes = place(points, avoid=[line])
    level = axes.transData.transform([line[:2], line[2:]])
    assert not any(box.y0 < level[0, 1] < box.y1 and box.x1 > level[0, 0] for box in boxes)
