import pytest

from bayesify.experiments.report.columns import TOPICS
from bayesify.experiments.report.figures import DRAWERS, figures, pair_figure, pairs
from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.style import styles

from .fake import full_records, full_regression_records, pair_records, records, regression_records


@pytest.fixture(scope="module")
def full():
    return of(full_records(1, ("map", "stf")))


def of(made):
    (group,) = groups(made)
    return figures(group, styles([row.label for row in group.rows]))


def test_figures_stand_under_the_topics_of_the_tables(full):
    assert set(DRAWERS) <= set(TOPICS)
    assert list(full) == ["quality", "foreign", "attacks", "corruption", "membership",
                           "certificates", "cost"]  # fmt: skip
    assert [figure.title for figure in full["quality"]] == ["Reliability", "Risk and coverage"]


def test_topics_without_figures_are_missing():
    assert list(of(regression_records())) == ["cost"]
    assert [each.title for each in of(full_regression_records(1))["quality"]] == [
        "Calibration of intervals"
    ]


def test_captions_tell_with_what_a_part_was_measured(full):
    assert "450 examples, 10 steps, 1 restart, 20 weight" in full["attacks"][0].caption
    assert "Mean over 6 kinds" in full["corruption"][0].caption
    assert "1000 members, 450 others" in full["membership"][0].caption
    assert "16 shadows" in full["membership"][0].caption
    assert "digits (ID) from photos (OOD)" in full["foreign"][0].caption


def test_captions_do_without_settings():
    made = full_records(1, ("map",))
    robustness = made[0]["curves"]["robustness"]
    made[0]["curves"] = {"robustness": {name: robustness[name] for name in ("eps", "attacks")}}
    assert "settings not recorded" in of(made)["attacks"][0].caption


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 1),
        ({"ood": "photos"}, 0),
        ({"model": "cnn"}, 0),
        ({"split": "validation"}, 0),
        ({"data": "words"}, 0),
    ],
)
def test_a_pair_needs_the_same_model_and_each_others_data(change, count):
    made = pair_records(1)
    for record in made:
        if record["data"] == "letters":
            record |= change
    assert len(pairs(groups(made))) == count


def test_a_pair_is_found_whatever_comes_first():
    (pair,) = pairs(groups(pair_records(1)[::-1] + records(1)))
    assert {pair.there.data, pair.back.data} == {"digits", "letters"}


def test_a_pair_without_curves_has_no_figure():
    made = pair_records(1)
    found = pairs(groups(made))
    drawn = styles(["map", "stf"])
    assert pair_figure(found[0], drawn) is not None
    for record in made:
        record["curves"] = {}
    assert pair_figure(pairs(groups(made))[0], drawn) is None
