import json

import pytest

from bayesify.core.errors import OptionError
from bayesify.experiments.results import Results

RECORD = {
    "cell": "a",
    "method": "map",
    "model": "mlp",
    "data": "digits",
    "seed": 0,
    "split": "test",
    "task": "classification",
    "metrics": {"nll": 0.1},
}


def test_records_come_back(tmp_path):
    results = Results(tmp_path / "new" / "folder")
    assert results.records() == []
    results.append(RECORD)
    results.append(RECORD | {"cell": "b", "data": "größe"})
    assert [record["cell"] for record in results.records()] == ["a", "b"]
    assert len(results.file.read_text().splitlines()) == 2


@pytest.mark.parametrize("rest", ['{"cell": "b", "meth', '{"cell"', "x"])
def test_a_broken_last_line_is_cut_off(tmp_path, rest):
    results = Results(tmp_path)
    results.append(RECORD)
    with results.file.open("a") as file:
        file.write(rest)
    assert results.repair()
    results.append(RECORD | {"cell": "c"})
    assert [record["cell"] for record in results.records()] == ["a", "c"]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    results = Results(tmp_path)
    results.file.write_text(json.dumps(RECORD))
    assert not results.repair()
    results.append(RECORD | {"cell": "b"})
    assert len(results.records()) == 2


def test_whole_files_are_left_alone(tmp_path):
    results = Results(tmp_path)
    assert not results.repair()
    results.append(RECORD)
    assert not results.repair()


def test_starting_over_keeps_the_old_file(tmp_path):
    results = Results(tmp_path)
    assert results.start_over() is None
    results.append(RECORD)
    old = results.start_over()
    assert old is not None
    assert old.name == "results.jsonl.old"
    assert old.exists()
    assert results.records() == []


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OptionError, match="cannot write to"):
            Results(out)
