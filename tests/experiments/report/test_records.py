import json

import pytest

from bayesify.core.errors import DataError
from bayesify.experiments.report.records import read, read_all

from .fake import published, records


def test_records_come_back_in_order(tmp_path):
    written = [*records(2), published()]
    lines = [json.dumps(each) for each in written]
    (tmp_path / "results.jsonl").write_text("\n".join([*lines, "", ""]))
    assert read(tmp_path / "results.jsonl") == written
    assert read(tmp_path) == written


def test_a_missing_file_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"bayesify compare --out"):
        read(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text("\n")
    with pytest.raises(DataError, match="empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"method": "map", "mod', "broken JSON"),
        ("[1, 2]", "JSON object, got list"),
        ('{"method": "map"}', "`model` to be a str, got nothing"),
        (json.dumps({**records(1)[0], "seed": "zero"}), "`seed` to be a int, got 'zero'"),
        ('{"literature": "PBP"}', "`source` to be a str, got nothing"),
        (json.dumps(published() | {"metrics": {"nll": 3}}), "`nll` to hold a value, got 3"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, words):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(records(1)[0]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"line 2: .*" + words):
        read(path)


def write(folder, *made):
    folder.mkdir()
    lines = [json.dumps(each) + "\n" for each in made]
    (folder / "results.jsonl").write_text("".join(lines))
    return folder


def test_several_files_are_joined_in_their_order(tmp_path):
    first, second, third = records(3, ("map",))
    one = write(tmp_path / "one", first, published())
    two = write(tmp_path / "two", second, third)
    assert read_all([one, two / "results.jsonl"]) == [first, published(), second, third]


def test_the_later_of_two_runs_of_a_cell_counts(tmp_path):
    first, second = ({**each, "cell": f"c{i}"} for i, each in enumerate(records(2, ("map",))))
    again = {**first, "metrics": {"nll": 7.0}}
    one, two = write(tmp_path / "one", first, second), write(tmp_path / "two", again)
    assert read_all([one, two]) == [again, second]
    assert read_all([two, one]) == [first, second]


def test_runs_without_a_cell_are_all_kept(tmp_path):
    (run,) = records(1, ("map",))
    one, two = write(tmp_path / "one", run, run), write(tmp_path / "two", run)
    assert read_all([one, two]) == [run, run, run]


def test_nothing_to_join_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one file"):
        read_all([])
    with pytest.raises(DataError, match="no such file"):
        read_all([write(tmp_path / "one", *records(1)), tmp_path / "two"])


def test_a_fit_that_was_not_evaluated_is_sent_to_be(tmp_path):
    folder = tmp_path / "fit"
    folder.mkdir()
    with pytest.raises(DataError, match=rf"run `bayesify compare --out {folder}` first"):
        read(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=rf"run `bayesify evaluate {folder}` first"):
        read(folder)
