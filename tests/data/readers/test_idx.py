import gzip
import struct

import numpy as np
import pytest
import torch

from bayesify import data
from bayesify.core.errors import DataError
from bayesify.data.readers.idx import read_idx


def idx(array):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_set(folder, *, ending="", train=100, test=20, compress=lambda content: content):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in {"train": train, "t10k": test}.items():
        images = rng.integers(256, size=(count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(compress(idx(images)))
        labels = np.arange(count) % 10
        (folder / f"{part}-labels-idx1-ubyte{ending}").write_bytes(compress(idx(labels)))


def test_a_file_holds_what_was_written(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    (tmp_path / "file").write_bytes(idx(array))
    assert read_idx(tmp_path / "file", axes=3).tolist() == array.tolist()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("subfolder", [True, False])
@pytest.mark.parametrize(("ending", "compress"), [("", bytes), (".gz", gzip.compress)])
def test_sets_are_found_plain_or_gzipped(tmp_path, name, subfolder, ending, compress):
    write_set(tmp_path / name if subfolder else tmp_path, ending=ending, compress=compress)
    parts = data.splits(name, data_dir=tmp_path)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (85, 15, 20)
    assert parts.input_shape == (1, 28, 28)
    assert parts.test.y.tolist() == [*range(10), *range(10)]
    assert parts.train.x.dtype == torch.uint8


def test_the_environment_names_a_folder(tmp_path, monkeypatch):
    write_set(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("BAYESIFY_DATA", str(tmp_path))
    assert len(data.load("mnist", "test")) == 20
    assert data.available()[1][2:] == (True, str(tmp_path / "MNIST" / "raw"))


def test_foreign_digits_take_the_shape_of_the_known(tmp_path):
    write_set(tmp_path)
    foreign = data.ood("mnist", data.splits("digits"), data_dir=tmp_path)
    assert foreign.x.shape == (20, 1, 8, 8)


def truncate(content):
    return content[:-5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, "truncated"),
        (lambda content: content + b"more", "damaged"),
        (lambda content: b"\0\0\x0d" + content[3:], "starting with 00000803, got 00000d03"),
        (lambda content: content[:6], "starting with 00000803"),
        (lambda content: b"", "got nothing"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    write_set(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        data.splits("mnist", data_dir=tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("change", [truncate, lambda content: b"plain", lambda content: b""])
def test_a_damaged_gzip_file_is_named(tmp_path, change):
    write_set(tmp_path, ending=".gz", compress=gzip.compress)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: expected"):
        data.splits("mnist", data_dir=tmp_path)


def test_images_and_labels_must_belong_together(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(50) % 10))
    with pytest.raises(DataError, match="100 examples and 50 targets in the training part"):
        data.splits("mnist", data_dir=tmp_path)


def test_labels_must_be_digits(tmp_path):
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 200)))
    with pytest.raises(DataError, match="expected labels from 0 to 9, got 0 to 200"):
        data.splits("mnist", data_dir=tmp_path)
