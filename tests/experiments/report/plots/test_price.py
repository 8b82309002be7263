import random

import pytest

from bayesify.experiments.report.plots.price import cost_against_quality, front

from ..fake import records, regression_records
from .drawing import drawn_by, texts_of


def test_the_front_holds_what_no_other_beats():
    assert front({"cheap": (1, 9), "good": (9, 1), "bad": (9, 9)}) == ["cheap", "good"]


def test_the_front_agrees_with_brute_force():
    generator = random.Random(0)
    for _ in range(200):
        points = {str(i): (generator.randint(1, 6), generator.randint(1, 6)) for i in range(8)}
        left = {
            label
            for label, (x, y) in points.items()
            if all(
                not (other[0] <= x and other[1] <= y and (other[0] < x or other[1] < y))
                for other in points.values()
            )
        }
        found = front(points)
        assert set(found) == left
        assert [points[label] for label in found] == sorted(points[label] for label in found)


def test_equal_points_share_the_front():
    assert front({"a": (1.0, 1.0), "b": (1.0, 1.0)}) == ["a", "b"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_method_stands_in_every_panel(seeds):
    svg = drawn_by(cost_against_quality, records(seeds))
    assert svg == drawn_by(cost_against_quality, records(seeds))
    texts = texts_of(svg)
    assert {"time per prediction", "trained parameters", "size on disk"} <= set(texts)
    assert [texts.count(label) for label in ("map+ts", "ensemble", "bali")] == [3, 3, 3]


def test_regression_has_a_price_too():
    assert drawn_by(cost_against_quality, regression_records()) is not None


def test_a_single_method_has_no_scatter():
    assert drawn_by(cost_against_quality, records(3, ("map",))) is None


def test_costs_that_are_zero_or_missing_are_left_out():
    made = records(1)
    for record in made:
        record["cost"] |= {"trainable_parameters": 0, "milliseconds_per_prediction": None}
    texts = texts_of(drawn_by(cost_against_quality, made))
    assert "size on disk" in texts
    assert not {"time per prediction", "trained parameters"} & set(texts)


def test_methods_of_one_price_can_be_drawn():
    made = records(1, ("map", "stf"))
    for record in made:
        record["cost"] |= {"trainable_parameters": 100, "disk_bytes": 800}
    assert "trained parameters" in texts_of(drawn_by(cost_against_quality, made))
