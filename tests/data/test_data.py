import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bayesify import data
from bayesify.core.errors import DataError, OptionError


@pytest.fixture(scope="module")
def digits():
    return data.splits("digits")


def test_digits_come_in_three_parts(digits):
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1144, 203, 450)
    assert digits.input_shape == (1, 8, 8)
    assert digits.num_outputs == len(digits.class_names) == 10
    assert digits.task == "classification"
    assert digits.is_image


def test_an_example_is_what_model_and_likelihood_read(digits):
    x, y = digits.train[0]
    assert (x.shape, x.dtype) == ((1, 8, 8), torch.float32)
    assert (y.shape, y.dtype) == ((), torch.int64)


def test_a_loader_collates_batches(digits):
    x, y = next(iter(DataLoader(digits.train, 32)))
    alone = [digits.train[index] for index in range(32)]
    assert torch.equal(x, torch.stack([each for each, _ in alone]))
    assert torch.equal(y, torch.stack([each for _, each in alone]))


def test_examples_end_where_they_end(digits):
    assert torch.equal(digits.test[-1][0], digits.test[449][0])
    with pytest.raises(IndexError):
        digits.test[450]


def test_the_same_seed_cuts_the_same_parts(digits):
    again = data.splits("digits")
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(again, part).x, getattr(digits, part).x)


def test_another_seed_moves_the_validation_part_but_not_the_test_part(digits):
    other = data.splits("digits", seed=1)
    assert not torch.equal(other.validation.x, digits.validation.x)
    assert torch.equal(other.test.x, digits.test.x)


def test_statistics_are_those_of_the_training_part(digits):
    x, _ = digits.train.batch(torch.arange(len(digits.train)))
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert digits.normalise.loc.item() == pytest.approx(digits.train.x.mean().item())


def test_classes_are_equally_frequent_in_all_parts(digits):
    for part in (digits.train, digits.validation, digits.test):
        share = part.y.bincount() / len(part)
        assert (share - 0.1).abs().max() < 0.01


def test_nothing_need_be_held_out_for_validation(digits):
    whole = data.splits("digits", validation_share=0)
    assert (len(whole.train), len(whole.validation)) == (1144 + 203, 0)
    assert torch.equal(whole.test.x, digits.test.x)


def test_only_files_with_test_parts_have_folds(tmp_path):
    assert data.num_folds("digits") == 0
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert data.num_folds("t.csv", data_dir=tmp_path) == 0
    (tmp_path / "images.npz").mkdir()
    assert data.num_folds("images.npz", data_dir=tmp_path) == 0
    with pytest.raises(DataError, match="unknown data source"):
        data.num_folds("nowhere.npz")


def test_load_gives_one_part(digits):
    assert torch.equal(data.load("digits", "validation").x, digits.validation.x)
    with pytest.raises(OptionError, match="expected 'train'"):
        data.load("digits", "tset")


def test_normalisation_can_be_undone(digits):
    x, _ = digits.test[3]
    torch.testing.assert_close(digits.normalise.inverse(x), digits.test.x[3])


def test_bytes_are_scaled_to_one():
    normalise = data.Normalise(torch.tensor(0.5), torch.tensor(0.25))
    assert normalise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "a"}, "takes no target"),
        ({"fold": 0}, "takes no fold"),
        ({"task": "regression"}, "takes no task"),
        ({"task": "ranking"}, "expected one of classification"),
        ({"image_size": 4}, "takes no image_size"),
        ({"image_size": 0}, "at least 1"),
        ({"seed": -1}, "expected a whole number"),
        ({"validation_share": 1.0}, "expected a number from 0 to less than 1"),
        ({"validation_share": -0.1}, "expected a number from 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        data.splits("digits", **options)


def test_an_unknown_source_suggests_a_near_one():
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        data.splits("fashion_mnist")


@pytest.mark.parametrize("name", ["notes.txt", "notes"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(DataError, match=r"expected an \.npz or \.csv file"):
        data.splits(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("mnist", "the four IDX files"),
        ("fashion-mnist", "apt-get install dataset-fashion-mnist"),
        ("cifar10", "the python version"),
    ],
)
def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, name, way, request):
    del request
    if name == "fashion-mnist" and data.available()[2].found:
        pytest.skip("Fashion-MNIST is installed")
    with pytest.raises(DataError, match=way) as caught:
        data.splits(name, data_dir=tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_available_lists_every_set():
    found = {row.name: row.found for row in data.available()}
    assert list(found) == ["digits", "mnist", "fashion-mnist", "cifar10", "photos"]
    assert found["digits"]
    assert not found["mnist"]


def test_photos_are_foreign_data_of_any_image_shape(digits):
    for shape in ((1, 8, 8), (3, 32, 20)):
        foreign = data.ood("photos", replace(digits, input_shape=shape))
        x, y = foreign[0]
        assert len(foreign) == 1000
        assert (x.shape, y.item()) == (shape, 0)
        assert foreign.x.min() >= 0
        assert foreign.x.max() <= 1
        assert foreign.x.std() > 0.1


def test_photos_have_no_labels():
    with pytest.raises(DataError, match="ood"):
        data.splits("photos")


def test_foreign_data_pass_through_the_normalisation_of_the_known(digits, tmp_path):
    grey = np.full((6, 16, 16), 51, np.uint8)
    np.savez(tmp_path / "grey.npz", x=grey, y=np.arange(6) % 2)
    foreign = data.ood(tmp_path / "grey.npz", digits)
    torch.testing.assert_close(foreign[0][0], digits.normalise(torch.full((1, 8, 8), 0.2)))


def test_features_have_no_foreign_data(digits, tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).normal(size=(60, 3)), y=np.ones(60))
    with pytest.raises(DataError, match="must be images"):
        data.ood(tmp_path / "rows.npz", digits)
    rows = data.splits(tmp_path / "rows.npz")
    with pytest.raises(DataError, match="expected a data set of images"):
        data.ood("photos", rows)


def test_the_package_alone_imports_no_reader():
    code = "import sys, bayesify.data; print({'sklearn', 'pandas', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
