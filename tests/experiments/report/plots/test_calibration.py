import numpy as np
import pytest

from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.plots.calibration import (
    COVERAGES,
    _risk,
    interval_calibration,
    reliability_diagrams,
    risk_coverage,
)
from bayesify.experiments.report.plots.lines import lines
from bayesify.experiments.report.style import PALETTE

from ..fake import full_records, full_regression_records, records, regression_records
from .drawing import colours_of, drawn_by, texts_of


@pytest.mark.parametrize("seeds", [1, 3])
def test_reliability_is_deterministic_and_names_every_method(seeds):
    svg = drawn_by(reliability_diagrams, records(seeds))
    assert svg == drawn_by(reliability_diagrams, records(seeds))
    assert {"map", "map+ts", "ensemble", "bali", "ECE 2.2 %"} <= set(texts_of(svg))


def test_regression_has_no_reliability():
    assert drawn_by(reliability_diagrams, regression_records()) is None
    assert drawn_by(risk_coverage, regression_records()) is None


def test_risk_and_coverage_names_every_method_in_its_colour():
    svg = drawn_by(risk_coverage, full_records(2))
    assert {"map", "ensemble", "stf", "bella"} <= set(texts_of(svg))
    assert set(PALETTE[:4]) <= colours_of(svg)


def test_risks_of_runs_are_averaged_at_equal_coverage():
    made = full_records(2, ("map",))
    for record, risk in zip(made, (0.1, 0.3), strict=True):
        thin = [0.02, 0.5, 1.0] if risk == 0.1 else [0.5, 1.0]
        record["curves"]["risk_coverage"] = {
            "coverage": thin,
            "risk": [risk * each for each in thin],
        }
    (group,) = groups(made)
    (line,) = lines(group, "risk_coverage", _risk)
    above = COVERAGES >= 0.5
    np.testing.assert_allclose(line.y[above], 0.2 * COVERAGES[above])


def test_intervals_are_drawn_against_the_diagonal():
    svg = drawn_by(interval_calibration, full_regression_records(2))
    assert {"map", "ensemble", "stf", "nominal level"} <= set(texts_of(svg))
    assert drawn_by(interval_calibration, records(1)) is None
