import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.plots.ood import at, far_away, roc_curves, roc_pair
from bayesify.experiments.report.style import styles

from ..fake import full_records, pair_records, records
from .drawing import drawn_by, texts_of


@pytest.mark.parametrize("seeds", [1, 3])
def test_roc_is_deterministic_and_names_every_method(seeds):
    svg = drawn_by(roc_curves, records(seeds))
    assert svg == drawn_by(roc_curves, records(seeds))
    assert all(any(label in text for text in texts_of(svg)) for label in ("map+ts", "bali"))


def test_there_is_no_roc_without_foreign_data():
    assert drawn_by(roc_curves, records(1, ood=None)) is None


def test_each_score_has_a_panel_with_its_own_auroc():
    texts = texts_of(drawn_by(roc_curves, full_records(1, ("map", "stf"))))
    titles = [text for text in texts if text.startswith("by ")]
    assert titles == ["by entropy", "by mutual information", "by max probability"]
    (group,) = groups(full_records(1, ("map", "stf")))
    for name in ("ood_auroc", "ood_auroc_mutual_information", "ood_auroc_max_prob"):
        assert f"{100 * group.rows[0].mean(name):.1f}  map" in texts


def test_the_common_grid_keeps_the_area_under_the_curve():
    generator = np.random.default_rng(0)
    truth = np.repeat([1, 0], 400)
    score = np.concatenate([generator.normal(1, 1, 400), generator.normal(0, 1, 400)])
    fpr, tpr, _ = roc_curve(truth, score)
    middles = (np.arange(400) + 0.5) / 400  # the curve is straight between one in 400 and the next
    assert at(middles, fpr, tpr).mean() == pytest.approx(roc_auc_score(truth, score), abs=1e-12)


def test_between_points_the_curve_is_straight():
    fpr, tpr = np.array([0, 0.5, 1]), np.array([0, 0.8, 1])
    grid = np.linspace(0, 1, 21)
    np.testing.assert_allclose(at(grid, fpr, tpr), np.interp(grid, fpr, tpr))


def test_where_a_curve_rises_its_upper_end_counts():
    fpr, tpr = np.array([0, 0, 0.5, 0.5, 1]), np.array([0, 0.4, 0.4, 1, 1])
    assert at(np.array([0, 0.25, 0.5, 1]), fpr, tpr).tolist() == [0.4, 0.4, 1, 1]


def test_a_pair_says_who_was_trained_on_what():
    there, back = groups(pair_records(1))
    drawn = styles(["map", "stf"])
    texts = texts_of(roc_pair(there, back, drawn))
    assert [text for text in texts if text.startswith("trained")] == [
        "trained on digits, judged on letters",
        "trained on letters, judged on digits",
    ]


def test_far_away_marks_the_limits():
    made = full_records(2)
    texts = texts_of(drawn_by(far_away, made))
    assert {"map", "stf", "limit", "1000"} <= set(texts)
    for record in made:
        record["curves"]["far_away"]["limit_mean"] = None
    assert "limit" not in texts_of(drawn_by(far_away, made))
    assert drawn_by(far_away, records(1)) is None


@pytest.mark.parametrize("methods", [("map",), ("map", "stf")])
@pytest.mark.parametrize("radius", [[10], [0, 1, 10]])
def test_far_away_of_odd_radii_can_be_drawn(methods, radius):
    made = full_records(1, methods)
    for record in made:
        away = record["curves"]["far_away"]
        away |= {name: away[name][: len(radius)] for name in ("mean", "low", "high")}
        away["radius"] = radius
    assert "limit" in texts_of(drawn_by(far_away, made))
