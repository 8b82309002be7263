import pandas as pd
import pytest

from bayesify.core.errors import DataError
from bayesify.data.encoding import Encoding

TABLE = {
    "size": pd.Series([1.5, 2.0, 3.0]),
    "colour": pd.Series(["red", "blue", "red"]),
    "sold": pd.Series([True, False, True]),
}


@pytest.fixture
def encoding():
    return Encoding.of("t.csv", TABLE, target="price")


def test_numbers_stay_and_texts_become_zeros_and_ones(encoding):
    expected = [[1.5, 0, 1, 1], [2, 1, 0, 0], [3, 0, 1, 1]]
    assert encoding("t.csv", TABLE).tolist() == expected
    assert encoding.measured.tolist() == [True, False, False, True]
    assert encoding.texts == ["colour"]


def test_it_survives_json(encoding):
    assert Encoding.from_json(encoding.to_json()) == encoding


def test_order_and_other_columns_make_no_difference(encoding):
    other = {"price": pd.Series([9.0] * 3), **dict(reversed(TABLE.items()))}
    assert encoding("new.csv", other).tolist() == encoding("t.csv", TABLE).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": pd.Series(["red", "pink", "red"])}, "'pink', which the training data did not"),
        ({"size": pd.Series(["s", "m", "l"])}, "expected numbers in column 'size'"),
    ],
)
def test_foreign_values_are_named(encoding, change, message):
    with pytest.raises(DataError, match=message):
        encoding("new.csv", TABLE | change)


def test_missing_columns_are_named(encoding):
    with pytest.raises(DataError, match="colour, sold are missing"):
        encoding("new.csv", {"size": TABLE["size"]})
