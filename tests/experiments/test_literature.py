import pytest

from bayesify.core.errors import OptionError
from bayesify.experiments.literature import Literature, read_literature
from bayesify.experiments.report.records import check

DATA = ("uci/boston.npz", "digits")
TABLE = {"label": "PBP", "source": "A paper, Table 1", "data": {"boston": {"rmse": [3.01, 0.18]}}}


def test_a_value_may_have_a_spread():
    table = TABLE | {"data": {"digits": {"nll": 3, "accuracy": [0.97, 0.01]}}, "spread": "errors"}
    (made,) = read_literature("s.toml", [table], DATA)
    assert made == Literature(
        "PBP",
        "A paper, Table 1",
        "errors",
        {"digits": {"nll": (3.0, None), "accuracy": (0.97, 0.01)}},
    )


@pytest.mark.parametrize("name", ["boston", "uci/boston.npz"])
def test_data_go_by_the_stem_or_the_whole_name(name):
    table = TABLE | {"data": {name: {"rmse": 3.01}}}
    (made,) = read_literature("s.toml", [table], DATA)
    (record,) = made.records({"uci/boston.npz": "uci/boston.npz (target y)", "digits": "digits"})
    assert check(record, "") == {
        "literature": "PBP",
        "source": "A paper, Table 1",
        "spread": "",
        "data": "uci/boston.npz (target y)",
        "metrics": {"rmse": {"value": 3.01, "spread": None}},
    }


def test_data_that_are_not_compared_have_no_record():
    (made,) = read_literature("s.toml", [TABLE], DATA)
    assert made.records({"digits": "digits"}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ""}, "a label in words"),
        ({"source": None}, "a source in words"),
        ({"sorce": "x"}, "unknown key 'sorce'.*did you mean 'source'"),
        ({"data": {}}, "expected numbers such as"),
        ({"data": "boston"}, "expected numbers such as"),
        ({"data": {"bosten": {"rmse": 1}}}, "'bosten' are not compared.*did you mean 'boston'"),
        ({"data": {"boston": {}}}, "metrics and their values"),
        ({"data": {"boston": {"rmsee": 1}}}, "unknown metric 'rmsee'.*did you mean 'rmse'"),
        ({"data": {"boston": {"rmse": "3"}}}, "boston, rmse: expected a number"),
        ({"data": {"boston": {"rmse": [1, 2, 3]}}}, "expected a number, or"),
        ({"data": {"boston": {"rmse": []}}}, "expected a number, or"),
        ({"data": {"boston": {"rmse": [1, True]}}}, "expected a number, or"),
        ({"data": {"boston": {"rmse": float("nan")}}}, "expected a number, or"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(OptionError, match=message):
        read_literature("s.toml", [TABLE | change], DATA)


def test_tables_must_be_tables():
    with pytest.raises(OptionError, match="tables, got"):
        read_literature("s.toml", {"label": "PBP"}, DATA)
