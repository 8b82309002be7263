import pytest
import torch

from bayesify import data
from bayesify.core.errors import DataError


@pytest.fixture
def write(tmp_path):
    def write(header, row, count=60):
        lines = [header, *(row(number) for number in range(count))]
        path = tmp_path / "own.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def mixed(number):
    return f"{number},{['red', 'green', 'blue'][number % 3]},{number % 2},{number / 7}"


@pytest.fixture
def path(write):
    return write("size,colour,kind,weight", mixed)


def test_whole_numbers_of_few_values_are_classes(path):
    parts = data.splits(path, target="kind")
    assert (parts.task, parts.class_names, parts.input_shape) == (
        "classification",
        ("0", "1"),
        (5,),
    )


def test_text_is_classes(path):
    parts = data.splits(path, target="colour")
    assert (parts.task, parts.class_names) == ("classification", ("blue", "green", "red"))


@pytest.mark.parametrize("target", ["size", "weight"])
def test_other_numbers_are_regressed_on(path, target):
    parts = data.splits(path, target=target)
    assert (parts.task, parts.num_outputs) == ("regression", 1)


def test_the_task_can_be_chosen(path):
    assert data.splits(path, target="kind", task="regression").num_outputs == 1


def test_truth_values_are_classes_and_features(write):
    path = write("a,yes", lambda number: f"{number % 3 == 0},{number % 2 == 0}")
    parts = data.splits(path, target="yes")
    assert parts.class_names == ("False", "True")
    assert parts.input_shape == (1,)


def test_numbers_are_standardised_and_texts_become_zeros_and_ones(path):
    parts = data.splits(path, target="kind")
    x, _ = parts.train.batch(torch.arange(len(parts.train)))
    numbers, colours = x[:, [0, 4]], x[:, 1:4]
    torch.testing.assert_close(numbers.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.std(0, correction=0), torch.ones(2))
    assert colours.unique().tolist() == [0, 1]
    assert colours.sum(1).unique().tolist() == [1]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "a,b",
            lambda n: f"{n},{'' if n == 5 else n}",
            r"1 missing in column 'b' \(first in row 5",
        ),
        ("a,b", lambda n: f"{'inf' if n == 5 else n},{n}", "infinity in column 'a'"),
        ("a,b", lambda n: f"{n},1", "one only"),
        ("b", str, "at least one feature"),
        (",b", lambda n: f"{n},{n}", "a name for every column"),
        ("a,b", lambda n: f"{n},{n},{n}", "comma-separated"),
        ("a,b", lambda n: f"{n},{n}" + ",1" * (n == 7), "comma-separated"),
        ("a,c", lambda n: f"{n},{n}", "expected target to be one of a, c, got 'b'"),
    ],
)
def test_tables_that_cannot_be_used_say_why(write, header, row, message):
    with pytest.raises(DataError, match=message):
        data.splits(write(header, row), target="b")


def test_a_target_must_be_named(path):
    with pytest.raises(DataError, match="pass target=, one of size, colour, kind, weight"):
        data.splits(path)


def test_a_near_name_is_suggested(path):
    with pytest.raises(DataError, match="did you mean 'weight'"):
        data.splits(path, target="wieght")


def test_text_cannot_be_regressed_on(path):
    with pytest.raises(DataError, match="got text in column 'colour'"):
        data.splits(path, target="colour", task="regression")


def test_a_table_has_one_target(path):
    with pytest.raises(DataError, match="not multilabel"):
        data.splits(path, target="kind", task="multilabel")


def test_too_many_texts_are_refused(write):
    path = write("name,y", lambda number: f"name{number},{number}", count=1001)
    with pytest.raises(DataError, match="got 1001 in 'name'"):
        data.splits(path, target="y")


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"a,b\n\xff\xfe,1\n"])
def test_a_file_without_rows_is_named(tmp_path, content):
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"own\.csv: expected"):
        data.splits(tmp_path / "own.csv", target="b")
