import numpy as np
import pytest
import torch

from bayesify import data
from bayesify.core.errors import DataError, OptionError
from zoo import SHARED


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "own.npz", **arrays)
        return tmp_path / "own.npz"

    return save


def test_floats_are_regressed_on(save, rng):
    x, y = rng.normal(3, 2, size=(100, 4)), rng.normal(5, 3, size=100)
    parts = data.splits(save(x=x, y=y))
    assert (parts.task, parts.input_shape, parts.num_outputs) == ("regression", (4,), 1)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (68, 12, 20)
    assert parts.class_names == ()
    assert parts.train.y.shape == (68, 1)
    assert parts.train[0][1].dtype == torch.float32


def test_statistics_of_inputs_and_targets_come_from_the_training_part(save, rng):
    parts = data.splits(save(x=rng.normal(3, 2, size=(100, 4)), y=rng.normal(5, 3, size=(100, 2))))
    x, y = parts.train.batch(torch.arange(len(parts.train)))
    for values in (x, y):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
    assert parts.target_loc is not None
    assert parts.target_loc.shape == parts.target_scale.shape == (2,)


def test_test_rows_change_no_statistic(save, rng):
    x, y, test_index = rng.normal(size=(60, 3)), rng.normal(size=60), np.arange(12)[None]
    before = data.splits(save(x=x, y=y, test_index=test_index))
    x[:12], y[:12] = 1e6, 1e6
    after = data.splits(save(x=x, y=y, test_index=test_index))
    assert torch.equal(before.normalise.loc, after.normalise.loc)
    assert torch.equal(before.normalise.scale, after.normalise.scale)
    assert torch.equal(before.target_loc, after.target_loc)


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.25, 20)])
def test_the_share_of_the_validation_part_can_be_chosen(save, share, count):
    x = np.arange(100.0)
    parts = data.splits(save(x=x, y=x), validation_share=share)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (80 - count, count, 20)
    rows = torch.cat([parts.train.x, parts.validation.x, parts.test.x]).flatten()
    assert sorted(rows.tolist()) == x.tolist()
    assert parts.target_loc.item() == pytest.approx(parts.train.x.mean().item(), rel=1e-6)


def test_no_row_is_in_two_parts_and_none_is_lost(save):
    x = np.arange(100.0)
    parts = data.splits(save(x=x, y=x))
    rows = torch.cat([parts.train.x, parts.validation.x, parts.test.x]).flatten()
    assert sorted(rows.tolist()) == x.tolist()


def test_large_values_keep_their_digits(save, rng):
    x = 1e9 + rng.normal(size=(100, 1))
    parts = data.splits(save(x=x, y=x[:, 0]))
    got, _ = parts.train.batch(torch.arange(len(parts.train)))
    assert got.std().item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(got, parts.train.y)


def test_what_does_not_vary_is_only_centred(save, rng):
    x = np.stack([np.full(50, 0.1), rng.normal(size=50)], 1)
    parts = data.splits(save(x=x, y=rng.normal(size=50)))
    assert parts.train[0][0][0].item() == pytest.approx(0, abs=1e-9)
    assert parts.normalise.scale[0] == 1


def test_integers_are_classes_in_the_order_of_their_values(save, rng):
    y = np.repeat([7, 3, -1], 30)
    parts = data.splits(save(x=rng.normal(size=(90, 2)), y=y))
    assert (parts.task, parts.class_names, parts.num_outputs) == (
        "classification",
        ("-1", "3", "7"),
        3,
    )
    assert parts.train.y.unique().tolist() == [0, 1, 2]


def test_truth_values_are_two_classes(save, rng):
    parts = data.splits(save(x=rng.normal(size=(40, 2)), y=np.arange(40) % 2 == 0))
    assert (parts.task, parts.num_outputs) == ("classification", 2)


def test_a_matrix_of_zeros_and_ones_is_labels(save, rng):
    y = rng.integers(2, size=(50, 3))
    parts = data.splits(save(x=rng.normal(size=(50, 2)), y=y))
    assert (parts.task, parts.num_outputs) == ("multilabel", 3)
    assert parts.train.y.dtype == torch.float32
    assert parts.train.y.unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("task", "dtype", "outputs"),
    [("classification", torch.int64, 5), ("regression", torch.float32, 1)],
)
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_the_task_can_be_chosen(save, rng, task, dtype, outputs, kind):
    path = save(x=rng.normal(size=(100, 2)), y=(np.arange(100) % 5).astype(kind))
    parts = data.splits(path, task=task)
    assert (parts.task, parts.num_outputs) == (task, outputs)
    assert parts.train[0][1].dtype == dtype


@pytest.mark.parametrize("shape", [(9, 7), (1, 9, 7), (3, 9, 7), (9, 7, 3)])
def test_bytes_are_images(save, rng, shape):
    x = rng.integers(256, size=(60, *shape), dtype=np.uint8)
    parts = data.splits(save(x=x, y=np.arange(60) % 2))
    assert parts.is_image
    assert parts.input_shape == (3 if 3 in shape else 1, 9, 7)
    assert parts.normalise.loc.shape == (parts.input_shape[0], 1, 1)
    assert 0.4 < parts.normalise.loc.mean() < 0.6


def test_parts_that_are_given_are_kept(save, rng):
    x = {part: rng.normal(size=(count, 3)) for part, count in {"train": 40, "test": 10}.items()}
    y = {part: np.arange(len(each)) % 2 for part, each in x.items()}
    path = save(x_train=x["train"], y_train=y["train"], x_test=x["test"], y_test=y["test"])
    parts = data.splits(path)
    assert len(parts.train) + len(parts.validation) == 40
    assert torch.equal(parts.test.x, torch.tensor(x["test"]))


def test_a_fold_chooses_the_test_rows(save):
    x = np.arange(40.0)
    path = save(x=x, y=x, test_index=np.arange(20, dtype=np.int32).reshape(2, 10))
    for fold in (0, 1):
        got = data.splits(path, fold=fold).test.x.flatten()
        assert got.tolist() == list(range(10 * fold, 10 * fold + 10))
    with pytest.raises(OptionError, match="expected a fold from 0 to 1, got 2"):
        data.splits(path, fold=2)


def test_folds_are_counted(save):
    assert data.num_folds(save(x=LINE, y=LINE, test_index=np.zeros((3, 2), int))) == 3
    assert data.num_folds(save(x=LINE, y=LINE, test_index=np.arange(5))) == 1
    assert data.num_folds(save(x=LINE, y=LINE)) == 0


def test_a_standard_split_of_the_literature():
    path = SHARED / "uci_yacht.npz"
    if not path.exists():
        pytest.skip(f"no UCI data in {SHARED}")
    assert data.num_folds(path) == 20
    parts = data.splits(path, fold=19)
    assert parts.input_shape == (6,)
    assert len(parts.test) == 31
    assert len(parts.train) + len(parts.validation) + 31 == 308


def test_a_relative_path_is_found_in_the_data_folder(save, rng):
    path = save(x=rng.normal(size=(40, 2)), y=rng.normal(size=40))
    assert len(data.splits(path.name, data_dir=path.parent).test) == 8


LINE = np.arange(40.0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": LINE}, "expected the arrays"),
        ({"x": LINE, "y": LINE[:-1]}, "40 examples and 39 targets"),
        ({"x": LINE[:0], "y": LINE[:0]}, "is empty"),
        ({"x": np.where(LINE == 3, np.nan, LINE), "y": LINE}, r"finite inputs.*row 3"),
        ({"x": LINE, "y": np.where(LINE == 4, np.inf, LINE)}, r"finite targets.*row 4"),
        ({"x": LINE, "y": np.ones(40, np.int64)}, "one only"),
        ({"x": LINE, "y": np.eye(40, dtype=np.int64) * 2}, "matrix"),
        ({"x": LINE, "y": np.ones((40, 2, 2))}, "flatten"),
        ({"x": LINE, "y": np.append(np.zeros(39, np.int64), 1)}, "rare classes"),
        ({"x": LINE[:1], "y": LINE[:1]}, "Give more examples"),
        ({"x": LINE, "y": LINE.astype(str)}, "expected numbers"),
        ({"x": 255 * np.ones((40, 1, 4, 4)), "y": LINE}, "from 255 to 255"),
        ({"x": LINE, "y": LINE, "test_index": [[40]]}, "rows from 0 to 39"),
        ({"x": LINE, "y": LINE, "test_index": [[-1]]}, "rows from 0 to 39"),
        ({"x": LINE, "y": LINE, "test_index": [np.arange(40)]}, "neither may be empty"),
        (
            {"x_train": LINE, "y_train": LINE, "x_test": LINE, "y_test": LINE[1:]},
            "in the test part",
        ),
        (
            {"x_train": LINE, "y_train": LINE, "x_test": np.eye(40), "y_test": LINE},
            "examples of one shape",
        ),
    ],
)
def test_arrays_that_cannot_be_used_say_why(save, arrays, message):
    with pytest.raises(DataError, match=message):
        data.splits(save(**arrays))


def test_fractions_are_no_classes(save):
    with pytest.raises(DataError, match="got fractions"):
        data.splits(save(x=LINE, y=LINE / 2), task="classification")


def test_only_a_file_with_folds_takes_a_fold(save):
    with pytest.raises(OptionError, match="has no test_index"):
        data.splits(save(x=LINE, y=LINE), fold=0)
    with pytest.raises(OptionError, match="brings its own test part"):
        data.splits(save(x_train=LINE, y_train=LINE, x_test=LINE, y_test=LINE), fold=0)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 truncated"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"own\.npz: expected an \.npz file"):
        data.splits(tmp_path / "own.npz")


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.array([{}]), y=np.array([1]))
    with pytest.raises(DataError, match="plain arrays"):
        data.splits(tmp_path / "own.npz")
