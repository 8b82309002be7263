import math

import pytest

from bayesify.evaluation.metrics.scores import METRICS as MEASURED
from bayesify.experiments.report.column import FORMATS, MISSING
from bayesify.experiments.report.columns import BRIEF, COST, METRICS, TOPICS, column, topic_of

from .fake import full_records, full_regression_records


def test_every_column_is_described_and_can_be_written():
    for each in {**METRICS, **COST}.values():
        assert each.definition
        assert len(each.title) <= 10
        assert each.kind in FORMATS


def test_every_metric_we_measure_has_a_column():
    assert {name for metrics in MEASURED.values() for name in metrics} <= set(METRICS)


def test_the_brief_columns_exist():
    assert {name for names in BRIEF.values() for name in names} <= {*METRICS, *COST}


def test_every_number_of_a_full_record_is_described_or_a_standard_error():
    for record in full_records(1, ("stf",)) + full_regression_records(1):
        for name in (*record["metrics"], *record["cost"]):
            assert name.removesuffix("_se") in {**METRICS, **COST}
            assert name.endswith("_se") or column(name).definition


def test_every_number_has_one_topic():
    named = [name for _, columns in TOPICS.values() for name in columns]
    assert len(named) == len(set(named)) == len({**METRICS, **COST})
    assert all(name in TOPICS[topic_of(name)][1] for name in named)


def test_titles_differ_within_a_table():
    for topic, (_, columns) in TOPICS.items():
        titles = [each.title for name, each in columns.items() if not name.startswith("label_")]
        assert len(set(titles)) == len(titles), topic


def test_the_numbers_of_the_three_scores_say_which_score_it_is():
    assert "entropy" in column("ood_auroc").definition
    assert "mutual information" in column("ood_fpr95_mutual_information").definition
    assert "largest probability" in column("ood_aupr_max_prob").definition


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
        ("flops_per_step", 82e6, "82 MFLOP"),
        ("flops_per_step", 82_300_000, "82.3 MFLOP"),
        ("flops_per_prediction", 512, "512 FLOP"),
        ("flops_per_prediction", 1.8e9, "1.8 GFLOP"),
        ("seconds_per_step", 0.00207, "2.07 ms"),
        ("attack_eps", 8 / 255, "8/255"),
        ("attack_eps", 0.3, "0.3"),
        ("attack_eps", 0.5, "0.5"),
        ("aurc", 0.0042, "4.2"),
        ("membership_tpr1", 0.0123, "1.23"),
        ("member_parameters", 320, "320"),
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
    [
        ("accuracy", 0.9, 0.8),
        ("nll", -1.0, 0.5),
        ("nll", 0.1, 0.2),
        ("coverage90", 0.91, 0.85),
        ("membership_auc", 0.5, 0.6),
        ("membership_auc", 0.52, 0.45),
        ("lira_tpr1", 0.01, 0.2),
        ("membership_tpr01", 0.001, 0.0),
        ("certificate", 0.1, 0.3),
        ("far_confidence", 0.6, 1.0),
        ("pgd_accuracy", 0.5, 0.1),
        ("corrupted_nll", 0.5, 0.7),
        ("interval_error", 0.01, 0.02),
    ],
)
def test_badness_puts_the_better_value_first(name, better, worse):
    assert column(name).badness(better) < column(name).badness(worse)


@pytest.mark.parametrize("name", ["mean_entropy", "attack_eps", "certificate_n", "num_samples"])
def test_some_numbers_have_no_better_and_worse(name):
    assert column(name).best is None
    assert column(name).badness(1.0) == column(name).badness(2.0)
