import json

import pytest

from bayesify.errors import DataError
from bayesify.report.records import read

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
