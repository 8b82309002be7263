import pytest

from bayesify.evaluation.findings import Findings


def test_parts_join():
    joined = Findings({"a": 1.0}, {"c": {"x": [1]}}) | Findings({"b": 2.0})
    assert joined == Findings({"a": 1.0, "b": 2.0}, {"c": {"x": [1]}})


def test_a_number_is_found_once():
    with pytest.raises(ValueError, match="found twice: a"):
        Findings({"a": 1.0}) | Findings({"a": 2.0})
