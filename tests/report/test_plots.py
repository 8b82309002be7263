import xml.etree.ElementTree as ET

import pytest

from bayesify.report.groups import groups
from bayesify.report.plots import cost_against_quality, reliability_diagrams, roc_curves
from bayesify.report.style import styles

from .fake import records, regression_records

FIGURES = (reliability_diagrams, roc_curves, cost_against_quality)


def drawn_by(figure, made):
    (group,) = groups(made)
    return figure(group, styles([row.label for row in group.rows]))


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_are_deterministic_xml_that_names_every_method(figure, seeds):
    svg = drawn_by(figure, records(seeds))
    assert svg == drawn_by(figure, records(seeds))
    texts = " ".join(each.text or "" for each in ET.fromstring(svg).iter() if "text" in each.tag)
    assert all(label in texts for label in ("map+ts", "ensemble", "bali"))


def test_there_is_no_roc_without_foreign_data():
    assert drawn_by(roc_curves, records(1, ood=None)) is None


def test_regression_has_no_reliability_but_a_price():
    assert drawn_by(reliability_diagrams, regression_records()) is None
    assert drawn_by(cost_against_quality, regression_records()) is not None


def test_a_single_method_has_no_scatter():
    assert drawn_by(cost_against_quality, records(3, ("map",))) is None


def test_costs_that_are_zero_or_missing_are_left_out():
    made = records(1)
    for record in made:
        record["cost"] |= {"trainable_parameters": 0, "milliseconds_per_prediction": None}
    assert drawn_by(cost_against_quality, made) is None
