import math

import pytest

from bayesify.experiments.report.column import FORMATS, LESS, MISSING, MORE, Column


def test_a_share_is_written_in_percent():
    assert Column("Acc %", "percent", MORE, "").text(0.5) == "50.0"


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("percent", 0.0123, "+1.2"),
        ("percent", -0.0123, "-1.2"),
        ("percent", 0.0001, "0.0"),
        ("percent", -0.0001, "0.0"),
        ("number", -0.0006, "-0.001"),
        ("number", 0.0, "0.000"),
        ("number", math.nan, MISSING),
        ("number", None, MISSING),
    ],
)
def test_a_difference_has_a_sign_unless_it_reads_zero(kind, value, text):
    assert Column("x", kind, LESS, "").difference(value) == text


def test_arrows_point_to_the_better_side():
    arrows = [Column("x", "number", best, "").arrow for best in (MORE, LESS, 0.9, None)]
    assert arrows == ["↑", "↓", "", ""]


@pytest.mark.parametrize("kind", FORMATS)
def test_zero_can_be_written_in_every_kind(kind):
    assert "0" in Column("x", kind, None, "").text(0.0)


@pytest.mark.parametrize(
    ("eps", "text"),
    [(1 / 255, "1/255"), (2.5 / 255, "0.0098"), (1.0, "1"), (0.2, "0.2"), (0.0, "0")],
)
def test_sizes_of_attacks_are_255ths_where_they_are_whole(eps, text):
    assert Column("Eps", "budget", None, "").text(eps) == text
