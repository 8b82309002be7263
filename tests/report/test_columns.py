import math

import pytest

from bayesify.evaluation.metrics import METRICS as MEASURED
from bayesify.report.columns import BRIEF, COST, FORMATS, METRICS, MISSING, column


def test_every_column_is_described_and_can_be_written():
    for each in {**METRICS, **COST}.values():
        assert each.definition
        assert len(each.title) <= 8
        assert each.kind in FORMATS


def test_every_metric_we_measure_has_a_column():
    assert {name for metrics in MEASURED.values() for name in metrics} <= set(METRICS)


def test_the_brief_columns_exist():
    assert set(BRIEF) <= {*METRICS, *COST}


def test_an_unknown_number_keeps_its_name():
    assert column("accuracy_under_attack").title == "accuracy_under_attack"
    assert column("accuracy_under_attack").arrow == ""


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 1.0, "100.0"),
        ("nll", 0.11824, "0.118"),
        ("nll", -3.5, "-3.500"),
        ("rmse", 12345.678, "12345.7"),
        ("trainable_parameters", 950, "950"),
        ("trainable_parameters", 9610, "9.6 k"),
        ("trainable_parameters", 36_600_000, "36.6 M"),
        ("disk_bytes", 384_123, "384 kB"),
        ("disk_bytes", 0, "0 B"),
        ("fit_seconds", 0.052, "52 ms"),
        ("fit_seconds", 3.14, "3.1 s"),
        ("fit_seconds", 600, "10.0 min"),
        ("fit_seconds", 9000, "2.5 h"),
        ("milliseconds_per_prediction", 0.0041, "4.1 µs"),
        ("milliseconds_per_prediction", 0.52, "0.52 ms"),
        ("milliseconds_per_prediction", 20.4, "20.4 ms"),
        ("milliseconds_per_prediction", 16343, "16343 ms"),
        ("ece", None, MISSING),
        ("ece", math.nan, MISSING),
    ],
)
def test_values_are_written_with_their_unit(name, value, text):
    assert column(name).text(value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("nll", 1.0, "1.00"),
        ("nll", -2.9, "-2.90"),
        ("nll", 0.4567, "0.4567"),
        ("rmse", 123.5, "123.50"),
        ("accuracy", 0.5, "50.0"),
        ("nll", None, MISSING),
    ],
)
def test_published_values_keep_their_digits(name, value, text):
    assert column(name).published(value) == text


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [("accuracy", 0.9, 0.8), ("nll", -1.0, 0.5), ("nll", 0.1, 0.2), ("coverage90", 0.91, 0.85)],
)
def test_badness_puts_the_better_value_first(name, better, worse):
    assert column(name).badness(better) < column(name).badness(worse)
