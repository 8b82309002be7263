import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from scipy import stats

from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.plots.lines import (
    FEW,
    Line,
    curves,
    draw,
    lines,
    mean_line,
    points,
    salt,
)
from bayesify.experiments.report.style import Style, new_figure

from ..fake import records

STYLE = Style("#0072b2", "o", "--")


def row_of(*ys, x=(0, 1, 2), folds=None):
    made = records(len(ys), ("map",))
    for i, (record, y) in enumerate(zip(made, ys, strict=True)):
        record["curves"] = {"c": {"x": list(x), "y": list(y)}}
        if folds:
            record |= {"fold": folds[i][0], "seed": folds[i][1]}
    (group,) = groups(made)
    return group.rows[0]


def read(curve):
    return points(curve, "x", "y")


def test_the_mean_is_taken_point_by_point():
    found = mean_line(row_of([0, 1, 2], [2, 1, 6]), "c", read)
    assert found.label == "map"
    assert found.x.tolist() == [0, 1, 2]
    assert found.y.tolist() == [1, 1, 4]


def test_bars_are_standard_errors_over_runs():
    ys = np.array([[0.1, 0.5, 0.2], [0.3, 0.4, 0.9], [0.2, 0.2, 0.3]])
    found = mean_line(row_of(*ys), "c", read)
    np.testing.assert_allclose(found.error, stats.sem(ys), rtol=1e-12)
    assert mean_line(row_of(ys[0]), "c", read).error is None


def test_seeds_of_a_fold_count_as_one():
    places = [(0, 0), (0, 1), (1, 0)]
    found = mean_line(row_of([1, 1, 1], [3, 3, 3], [6, 6, 8], folds=places), "c", read)
    assert found.y.tolist() == [4, 4, 5]
    np.testing.assert_allclose(found.error, stats.sem([[2, 2, 2], [6, 6, 8]]))


def test_a_run_on_another_grid_than_the_last_is_left_out():
    row = row_of([0, 0, 0], [4, 5, 6])
    row.runs[0]["curves"]["c"]["x"] = [0, 1, 7]
    found = mean_line(row, "c", read)
    assert found.y.tolist() == [4, 5, 6]
    assert found.error is None


def test_what_is_missing_is_no_line_and_not_finite_a_gap():
    assert mean_line(row_of([0, 1, 2]), "d", read) is None
    assert points({"x": [1]}, "x", "y") is None
    assert points(None, "x", "y") is None
    found = mean_line(row_of([0, None, 2], [0, 1, 4]), "c", read)
    assert np.isnan(found.y).tolist() == [False, True, False]


def test_rows_without_the_curve_have_no_line():
    made = records(1, ("map", "stf"))
    del made[0]["curves"]["roc"]
    (group,) = groups(made)
    assert [each.label for each in lines(group, "roc", lambda c: points(c, "fpr", "tpr"))] == [
        "stf"
    ]
    assert curves(group.rows[0], "roc") == []


@pytest.mark.parametrize(("size", "banded"), [(FEW, False), (FEW + 1, True)])
def test_few_points_have_bars_and_many_a_band(size, banded):
    x = np.arange(size, dtype=float)
    axes = new_figure(2, 2).add_subplot()
    draw(axes, Line("map", x, x, np.ones(size)), STYLE)
    bands = [each for each in axes.collections if isinstance(each, PolyCollection)]
    assert bool(bands) is banded
    assert bool(axes.containers) is not banded
    assert {line.get_linestyle() for line in axes.lines if line.get_marker() == "o"} == {"--"}


def test_figures_of_groups_that_differ_only_in_foreign_data_have_other_names():
    one, two = groups(records(1, ("map",)) + records(1, ("map",), ood=None))
    assert salt("roc", one) != salt("roc", two)
