import math
import statistics

import pytest

from bayesify.experiments.report.groups import estimate, groups, over_folds

from .fake import folded_records, full_records, published, records, regression_records


def test_estimate_is_mean_and_standard_error():
    values = [0.1, 0.4, 0.2, 0.9]
    found = estimate(values)
    assert found is not None
    assert found.mean == pytest.approx(0.4)
    assert found.standard_error == pytest.approx(statistics.stdev(values) / 2)
    assert found.n == 4


def test_one_seed_has_no_standard_error():
    found = estimate([0.5])
    assert found is not None
    assert found.standard_error is None


@pytest.mark.parametrize("values", [[], [None], [0.1, None], [0.1, math.nan], [0.1, math.inf]])
def test_what_is_missing_or_not_finite_has_no_mean(values):
    assert estimate(values) is None


def test_runs_of_equal_data_model_and_split_form_a_group():
    found = groups(records(2) + records(2, model="cnn") + regression_records())
    assert [(group.data, group.model) for group in found] == [
        ("digits", "mlp"),
        ("digits", "cnn"),
        ("boston", "mlp"),
    ]
    assert [row.label for row in found[0].rows][:3] == ["map", "map+ts", "ensemble"]
    assert found[0].seeds == [0, 1]


def test_other_foreign_data_is_another_group():
    assert [g.ood for g in groups(records(1) + records(1, ood=None))] == ["photos", None]


def test_the_later_of_two_runs_of_a_cell_counts():
    first, second = records(1)[0], records(1)[0]
    second["metrics"]["accuracy"] = 0.5
    (row,) = groups([first, second])[0].rows
    found = row.estimate("accuracy")
    assert found is not None
    assert (found.mean, found.n) == (0.5, 1)


def test_folds_are_averaged_with_their_standard_error():
    values = {(0, 0): 1.0, (1, 0): 2.0, (2, 0): 6.0}
    ((row,),) = (group.rows for group in groups(folded_records(values)))
    found = row.estimate("nll")
    assert found.mean == pytest.approx(3.0)
    assert found.standard_error == pytest.approx(statistics.stdev([1, 2, 6]) / math.sqrt(3))
    assert (found.n, row.folds, row.seeds) == (3, [0, 1, 2], [0])


def test_seeds_of_one_fold_count_as_one():
    values = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 10.0, (1, 1): 14.0, (1, 2): 12.0}
    (group,) = groups(folded_records(values))
    found = group.rows[0].estimate("nll")
    assert found.mean == pytest.approx((2 + 12) / 2)
    assert found.standard_error == pytest.approx(5)
    assert (group.folds, group.seeds) == ([0, 1], [0, 1, 2])


def test_one_fold_has_the_standard_error_of_its_seeds():
    (group,) = groups(folded_records({(4, 0): 1.0, (4, 1): 3.0}))
    assert group.rows[0].estimate("nll").standard_error == pytest.approx(1)


def test_a_fold_without_a_number_leaves_no_mean():
    made = folded_records({(0, 0): 1.0, (1, 0): 2.0})
    made[1]["metrics"]["nll"] = None
    assert groups(made)[0].rows[0].estimate("nll") is None


def test_published_numbers_stand_beside_runs_on_their_data():
    made = [published(), *regression_records(), *records(1)]
    boston, digits = groups(made)
    (beside,) = boston.published
    assert (beside.label, beside.source) == ("PBP", "A paper, Table 1")
    assert beside.values == {"rmse": (3.01, 0.18), "nll": (2.5, None)}
    assert digits.published == ()
    assert [row.label for row in boston.rows] == ["map", "ensemble", "stf"]


def test_published_numbers_are_for_test_parts():
    made = [{**each, "split": "validation"} for each in regression_records()]
    assert groups([published(), *made])[0].published == ()


def test_the_later_of_two_published_rows_of_one_name_counts():
    made = [published(source="first"), published(source="second"), *regression_records()]
    assert [each.source for each in groups(made)[0].published] == ["second"]


def test_other_options_are_another_row():
    first, second = records(1)[0], records(1)[0]
    second["options"] = {"epochs": 5}
    assert [row.label for row in groups([first, second])[0].rows] == ["map", "map #2"]


def test_metrics_and_costs_are_in_the_order_of_the_columns():
    (group,) = groups(records(1))
    assert group.metrics[:3] == ["accuracy", "nll", "ece"]
    assert "peak_memory_bytes" not in group.costs
    assert group.costs[0] == "trainable_parameters"


def test_a_record_without_cost_still_counts():
    (record, *_) = records(1)
    del record["cost"], record["curves"]
    (group,) = groups([record])
    assert group.costs == []


def test_runs_of_another_setup_are_another_row():
    made = records(1, ("map",)) + records(1, ("map",))
    made[1]["setup"] = {"batch_size": 17}
    (group,) = groups(made)
    assert [row.label for row in group.rows] == ["map", "map #2"]


def test_folds_of_several_seeds_are_averaged_by_fold():
    pairs = [(0, 1.0), (0, 3.0), (1, 10.0), (1, 14.0), (2, 0.0)]
    found = over_folds(pairs)
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean([2, 12, 0]))
    assert found.standard_error == pytest.approx(statistics.stdev([2, 12, 0]) / math.sqrt(3))
    assert over_folds([(0, 1.0), (1, None)]) is None


def test_a_standard_error_within_a_run_is_no_number_of_its_own():
    (group,) = groups(full_records(2))
    assert "membership_auc" in group.metrics
    assert not any(name.endswith("_se") for name in group.metrics)


def test_a_single_run_has_the_standard_error_of_its_examples():
    (one,), (two,) = groups(full_records(1, ("map",))), groups(full_records(2, ("map",)))
    run = one.rows[0].runs[0]["metrics"]
    assert one.rows[0].estimate("membership_auc").standard_error == run["membership_auc_se"]
    assert one.rows[0].estimate("certificate").standard_error is None
    values = [run["metrics"]["membership_auc"] for run in two.rows[0].runs]
    spread = statistics.stdev(values) / math.sqrt(2)
    assert two.rows[0].estimate("membership_auc").standard_error == pytest.approx(spread)


def test_numbers_are_sorted_into_topics():
    made = full_records(1, ("map",))
    made[0]["metrics"]["unheard_of"] = 1.0
    (group,) = groups(made)
    assert group.names("attacks")[0] == "attack_eps"
    assert group.names("quality")[-1] == "unheard_of"
    assert group.names("cost") == group.costs
    topics = ("quality", "foreign", "attacks", "corruption", "membership", "certificates")
    assert sorted(name for topic in topics for name in group.names(topic)) == sorted(group.metrics)
