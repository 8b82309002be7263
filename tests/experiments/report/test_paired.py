import math
import statistics

import numpy as np
import pytest
from scipy import stats

from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.paired import differences, paired_table, quantile, reference

from .fake import folded_records, full_records, full_regression_records, records


def group_of(values):
    """Runs with an NLL for each method and seed."""
    made = [
        {**records(1, ("map",))[0], "method": method, "seed": seed, "metrics": {"nll": nll}}
        for method, each in values.items()
        for seed, nll in each.items()
    ]
    (group,) = groups(made)
    return group


def only(found):
    ((_, (each,)),) = found.rows
    return each


def test_the_difference_is_method_less_reference():
    found = differences(group_of({"map": {0: 1.0, 1: 2.0}, "stf": {0: 0.5, 1: 1.5}}))
    assert (found.reference, found.names) == ("map", ("nll",))
    assert found.rows[0][0] == "stf"
    assert only(found).estimate.mean == -0.5


def test_it_is_paired_as_in_a_t_test():
    a, b = [0.31, 0.42, 0.28, 0.55], [0.29, 0.37, 0.27, 0.48]
    found = only(differences(group_of({"map": dict(enumerate(a)), "stf": dict(enumerate(b))})))
    expected = stats.ttest_rel(b, a)
    assert found.estimate.mean / found.estimate.standard_error == pytest.approx(expected.statistic)
    assert found.estimate.n == 4
    assert found.marked is bool(expected.pvalue < 0.05)
    pooled = math.hypot(statistics.stdev(a), statistics.stdev(b)) / 2
    assert found.estimate.standard_error < pooled / 3


def test_only_common_seeds_are_compared():
    found = differences(
        group_of({"map": {0: 1.0, 1: 2.0, 7: 99.0}, "stf": {1: 2.5, 0: 1.5, 3: -99.0}})
    )
    assert only(found).estimate.mean == pytest.approx(0.5)
    assert only(found).estimate.n == 2


def test_one_common_run_is_no_comparison():
    assert differences(group_of({"map": {0: 1.0, 1: 2.0}, "stf": {1: 2.0, 2: 3.0}})) is None
    assert differences(group_of({"map": {0: 1.0, 1: 2.0}})) is None


def test_without_map_the_first_row_is_the_reference():
    assert reference(groups(records(1, ("stf", "map")))[0]).label == "map"
    assert reference(groups(records(1, ("stf", "bella")))[0]).label == "stf"


@pytest.mark.parametrize(
    ("gaps", "marked"),
    [
        ((1.0, 1.1, 0.9), True),
        ((1.0, -1.0, 0.5), False),
        ((1.0, 1.1), False),  # too few
        ((0.0, 0.0, 0.0), False),
        ((0.1, 0.1, 0.1), True),
        ((0.1, 1.0, 1.3), False),  # 2.2 standard errors
        ((0.5, 1.0, 1.25), False),  # 4.2 of them, a little less than Student's quantile
        ((0.5, 1.0, 1.1), True),
    ],
)
def test_marks_need_three_pairs_and_students_quantile(gaps, marked):
    values = {"map": dict.fromkeys(range(len(gaps)), 0.0), "stf": dict(enumerate(gaps))}
    assert only(differences(group_of(values))).marked is marked


@pytest.mark.parametrize("n", [3, 4, 10])
def test_where_there_is_no_difference_one_in_twenty_is_marked(n):
    """Truth: 4,000 comparisons of nothing with nothing."""
    gaps = np.random.default_rng(n).normal(size=(4000, n))
    errors = gaps.std(1, ddof=1) / n**0.5
    share = (abs(gaps.mean(1)) > quantile(n) * errors).mean()
    assert share == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 4000) ** 0.5)


def test_seeds_are_averaged_within_folds():
    ours = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (1, 1): 5.0, (2, 0): 0.0}
    theirs = dict.fromkeys(ours, 0.0)
    (group,) = groups(folded_records(theirs) + folded_records(ours, "stf"))
    found = only(differences(group))
    assert found.estimate.mean == pytest.approx(np.mean([2, 5, 0]))
    assert found.estimate.standard_error == pytest.approx(stats.sem([2, 5, 0]))
    assert found.estimate.n == 3


def test_a_number_that_one_run_lacks_is_not_compared():
    made = records(3, ("map", "stf"))
    made[4]["metrics"]["nll"] = None
    found = differences(groups(made)[0])
    assert "nll" not in found.names
    assert "accuracy" in found.names


def test_every_part_is_compared():
    (group,) = groups(full_records(3))
    names = {"nll", "accuracy", "ece", "ood_auroc", "pgd_accuracy", "corrupted_nll"}
    assert set(differences(group).names) == names | {"membership_auc"}
    (group,) = groups(full_regression_records(3))
    assert set(differences(group).names) == {"nll", "rmse", "crps"}


def test_the_table_shows_signs_marks_and_what_they_mean():
    values = {"map": {0: 1.0, 1: 1.0, 2: 1.0}, "stf": {0: 0.8, 1: 0.7, 2: 0.75}}
    shown = paired_table(differences(group_of(values)))
    ((label, (cell,)),) = shown.rows
    assert (label, cell.text, cell.best) == ("stf", "-0.250", True)
    assert cell.error == f"{stats.sem([0.2, 0.3, 0.25]):.3f}"
    assert "3 pairs" in shown.notes[0]
    assert "Student's quantile (4.30 for 3 pairs)" in shown.notes[0]


def test_with_two_pairs_the_note_says_that_nothing_is_marked():
    values = {"map": {0: 1.0, 1: 1.0}, "stf": {0: 0.5, 1: 0.5}}
    shown = paired_table(differences(group_of(values)))
    assert "None is marked" in shown.notes[0]
    assert not shown.rows[0][1][0].best
