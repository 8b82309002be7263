import math
import statistics

import pytest

from bayesify.report.groups import estimate, groups

from .fake import folded_records, published, records, regression_records


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
