import io
from dataclasses import replace

import pytest
from rich.console import Console

from bayesify.experiments.report.columns import TOPICS
from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.tables import (
    caption,
    measure_width,
    table,
    terminal_tables,
    topic_table,
)

from .fake import (
    folded_records,
    full_records,
    full_regression_records,
    published,
    records,
    regression_records,
)


def quality_table(group):
    return topic_table(group, "quality")


def cost_table(group):
    return topic_table(group, "cost")


def printed(group, width=100):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(*terminal_tables(group, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_best_of_each_column_is_marked():
    first, second = records(1, ("map", "stf"))
    first["metrics"] = {"accuracy": 0.9, "nll": 0.3, "ece": 0.02, "sharpness": 1.0}
    second["metrics"] = {"accuracy": 0.8, "nll": 0.2, "ece": 0.02, "sharpness": 2.0}
    made = quality_table(groups([first, second])[0])
    assert [column.title for column in made.columns] == ["Acc %", "NLL", "ECE %", "Spread"]
    assert [[cell.best for cell in cells] for _, cells in made.rows] == [
        [True, False, False, False],
        [False, True, False, False],
    ]


def test_values_that_read_the_same_share_the_mark():
    first, second = records(1, ("map", "stf"))
    first["metrics"]["nll"], second["metrics"]["nll"] = 0.12301, 0.12302
    other = records(1, ("bali",))
    (group,) = groups([first, second, *other])
    assert [cells[0].best for _, cells in table(group, ["nll"]).rows] == [True, True, False]


def test_one_method_has_nothing_to_beat():
    (group,) = groups(records(3, ("map",)))
    assert not any(cell.best for _, cells in quality_table(group).rows for cell in cells)


def test_standard_errors_need_several_seeds():
    (one,), (three,) = groups(records(1)), groups(records(3))
    assert not any(cell.error for _, cells in quality_table(one).rows for cell in cells)
    assert all(cell.error for _, cells in quality_table(three).rows for cell in cells)
    assert not any(cell.error for _, cells in cost_table(three).rows for cell in cells)


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_terminal_tables_fit_a_hundred_characters(seeds):
    (group,) = groups(records(seeds))
    text = printed(group)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for label in ("map+ts", "ensemble", "bali"):
        assert label in text
    for title in ("Acc %↑", "NLL↓", "Brier↓", "AUROC %↑", "Stored↓", "Disk↓", "Epoch↓", "Predict↓"):
        assert title in text


def test_regression_shows_its_own_columns():
    text = printed(groups(regression_records())[0])
    assert "RMSE↓" in text
    assert "Acc" not in text


def test_published_numbers_are_marked_and_never_the_best():
    others = [published(label="old", source="B"), published(label="new", source="A")]
    others += [published(label="other", source="B")]
    for record in others:
        record["metrics"]["rmse"]["value"] = 0.01
    (group,) = groups([*others, *regression_records()])
    made = quality_table(group)
    assert [label for label, _ in made.published] == ["old *", "new **", "other *"]
    assert [note.split(" ")[0] for note in made.notes] == ["*", "**"]
    assert "not measured here: B" in made.notes[0]
    assert not any(cell.best for _, cells in made.published for cell in cells)
    assert sum(cells[0].best for _, cells in made.rows) == 1
    text = printed(group)
    assert "old *" in text
    assert "0.01±0.18" in text
    assert text.count("not measured here") == 2


def test_costs_have_no_published_rows():
    (group,) = groups([published(), *regression_records()])
    assert cost_table(group).published == cost_table(group).notes == ()
    _, *prices = terminal_tables(group, 60)
    assert [price.row_count for price in prices] == [3] * len(prices)


def test_means_of_fewer_runs_are_pointed_out():
    made = folded_records({(0, 0): 1.0, (1, 0): 2.0}) + folded_records({(0, 0): 1.0}, "stf")
    (group,) = groups(made)
    assert quality_table(group).notes == ("Means of fewer runs than the 2 of the others: stf 1",)
    assert "stf 1" in printed(group)


def test_a_caption_counts_folds():
    (group,) = groups(folded_records({(0, 0): 1.0, (1, 0): 2.0}))
    assert caption(group) == "boston, mlp · test split · 2 folds · 1 seed"


def test_brackets_in_labels_are_shown():
    (group,) = groups(records(1, ("map",)))
    group = replace(group, rows=(replace(group.rows[0], label="map [red]x"),))
    assert "map [red]x" in printed(group)


def test_a_value_that_is_missing_is_a_dash():
    first, second = records(1, ("map", "stf"))
    first["metrics"]["nll"] = None
    (group,) = groups([first, second])
    assert next(cells[0].text for _, cells in table(group, ["nll"]).rows) == "–"  # noqa: RUF001


def test_a_narrow_terminal_gets_two_tables_that_fit():
    (group,) = groups(records())
    assert len(terminal_tables(group, 200)) == 1
    quality, price = terminal_tables(group, 80)
    console = Console(file=io.StringIO(), width=80)
    console.print(quality, price)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("NLL") < text.index("Predict")


def test_every_number_stands_in_the_table_of_one_topic():
    (group,) = groups(full_records(2))
    shown = [each for topic in TOPICS for each in topic_table(group, topic).columns]
    assert len(shown) == len(group.metrics) + len(group.costs)
    assert topic_table(groups(regression_records())[0], "attacks").columns == ()


def test_membership_is_best_at_a_half():
    first, second = full_records(1, ("map", "stf"))
    first["metrics"] = {"membership_auc": 0.40}
    second["metrics"] = {"membership_auc": 0.52}
    (group,) = groups([first, second])
    assert [cells[0].best for _, cells in table(group, ["membership_auc"]).rows] == [False, True]


def test_a_single_run_shows_the_error_over_its_examples():
    (group,) = groups(full_records(1, ("map", "stf")))
    ((_, (auc, bound)), _) = table(group, ["membership_auc", "certificate"]).rows
    assert auc.error == "1.1"
    assert bound.error == ""


def test_settings_have_no_standard_error():
    (group,) = groups(full_records(3))
    for _, cells in table(group, ["attack_eps", "certificate_n"]).rows:
        assert [(cell.text, cell.error) for cell in cells] == [("8/255", ""), ("1 k", "")]


@pytest.mark.parametrize("made", [full_records(3), full_regression_records(3)])
def test_full_terminal_tables_fit_110_characters(made):
    (group,) = groups(made)
    for drawn in terminal_tables(group, 110):
        assert measure_width(drawn) <= 110
    text = printed(group, 110)
    assert "…" not in text


def test_robustness_and_privacy_have_a_terminal_table_of_their_own():
    (group,) = groups(full_records(3))
    quality, trust, price = terminal_tables(group, 110)
    titles = [[str(column.header) for column in each.columns] for each in (quality, trust, price)]
    assert titles[0][1] == "Acc %↑"
    assert titles[1] == ["Method", "PGD %↑", "Corr NLL↓", "MIA AUC", "LiRA AUC", "Bound %↓"]
    assert titles[2][1] == "Trained↓"


def test_very_long_names_cut_the_tables_further():
    made = full_records(2)
    for record in made:
        record["method"] += " with a very long name for its row" * 2
    (group,) = groups(made)
    drawn = terminal_tables(group, 110)
    assert len(drawn) > 3
    assert all(measure_width(each) <= 110 for each in drawn)
    headers = [str(column.header) for each in drawn for column in each.columns[1:]]
    assert len(headers) == len(set(headers))
    assert {"NLL↓", "Bound %↓", "Predict↓"} <= set(headers)


def test_a_record_without_known_numbers_still_has_a_table():
    (record,) = records(1, ("map",))
    record |= {"metrics": {"unheard_of": 1.0}, "cost": {}}
    assert [each.row_count for each in terminal_tables(groups([record])[0], 110)] == [1]
