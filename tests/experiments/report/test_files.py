import csv
import json
import math

import pytest

from bayesify.experiments.report.files import stems, tables_to_files, write_atomically
from bayesify.experiments.report.groups import groups

from .fake import full_records, pair_records, published, records, regression_records


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_is_a_csv_and_a_json(tmp_path):
    written = tables_to_files(groups(records(2, ("map",), ood=None)), tmp_path)
    names = ["digits-mlp-quality.csv", "digits-mlp-quality.json"]
    names += ["digits-mlp-cost.csv", "digits-mlp-cost.json"]
    assert [each.name for each in written] == names
    assert sorted((tmp_path / "tables").iterdir()) == sorted(written)


def test_the_numbers_are_those_of_the_groups_unrounded(tmp_path):
    found = groups(full_records(3))
    (group,) = found
    for path in tables_to_files(found, tmp_path):
        if path.suffix == ".json" or "differences" in path.name:
            continue
        lines = rows_of(path)
        told = json.loads(path.with_suffix(".json").read_text())["values"]
        assert len(lines) == len(told) > 0
        for line, value in zip(lines, told, strict=True):
            row = next(row for row in group.rows if row.label == line["method"])
            estimate = row.estimate(line["name"])
            assert float(line["mean"]) == value["mean"] == estimate.mean
            assert float(line["standard_error"]) == estimate.standard_error
            assert int(line["n"]) == value["n"] == 3


def test_what_was_not_measured_is_empty(tmp_path):
    first, second = records(1, ("map", "stf"), ood=None)
    first["metrics"]["nll"] = None
    tables_to_files(groups([first, second]), tmp_path)
    lines = rows_of(tmp_path / "tables" / "digits-mlp-quality.csv")
    found = {line["method"]: line for line in lines if line["name"] == "nll"}
    assert (found["map"]["mean"], found["map"]["n"]) == ("", "")
    assert (found["stf"]["n"], found["stf"]["standard_error"]) == ("1", "")
    told = json.loads((tmp_path / "tables" / "digits-mlp-quality.json").read_text())
    assert told["values"][1] | {"method": "map"} == {
        "method": "map",
        "name": "nll",
        "mean": None,
        "standard_error": None,
        "n": None,
    }
    assert (told["data"], told["model"], told["task"]) == ("digits", "mlp", "classification")


def test_differences_name_their_reference(tmp_path):
    made = records(3, ("map", "stf"), ood=None)
    for record in made:
        record["metrics"]["nll"] = 1.0 - 0.25 * (record["method"] == "stf")
    tables_to_files(groups(made), tmp_path)
    lines = rows_of(tmp_path / "tables" / "digits-mlp-differences.csv")
    (nll,) = [line for line in lines if line["name"] == "nll"]
    assert (nll["method"], nll["reference"], nll["mean"]) == ("stf", "map", "-0.25")
    assert (nll["n"], nll["marked"]) == ("3", "True")


def test_published_numbers_are_kept_apart(tmp_path):
    tables_to_files(groups([published(), *regression_records()]), tmp_path)
    told = json.loads((tmp_path / "tables" / "boston-mlp-quality.json").read_text())
    assert [each["value"] for each in told["published"]] == [3.01, 2.5]
    assert "PBP" not in (tmp_path / "tables" / "boston-mlp-quality.csv").read_text()
    assert "published" not in json.loads((tmp_path / "tables" / "boston-mlp-cost.json").read_text())


def test_groups_never_share_a_file(tmp_path):
    made = records(1) + pair_records(1) + records(1, ood=None)
    odd = records(1, ("map",))
    odd[0]["data"] = "../a b/c:d"
    made += odd
    found = groups(made)
    names = stems(found)
    assert len(set(names)) == len(found)
    assert names[-1] == "a-b-c-d-mlp"
    written = tables_to_files(found, tmp_path)
    assert len(set(written)) == len(written)
    assert {path.parent for path in written} == {tmp_path / "tables"}


def test_names_that_differ_in_signs_only_are_numbered():
    made = records(1, ("map",), ood="a b") + records(1, ("map",), ood="a-b")
    assert stems(groups(made)) == ["digits-mlp-test-a-b", "digits-mlp-test-a-b-2"]


def test_what_is_not_finite_is_no_number_in_json(tmp_path):
    made = records(1, ("map",), ood=None)
    made[0]["metrics"]["nll"] = math.inf
    for path in tables_to_files(groups(made), tmp_path):
        assert "Infinity" not in path.read_text()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_atomically(tmp_path / "new" / "a.csv", "old\n")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old\n"
    assert list(path.parent.iterdir()) == [path]
