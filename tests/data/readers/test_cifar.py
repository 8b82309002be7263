import os
import pickle

import numpy as np
import pytest
import torch

from bayesify import data
from bayesify.core.errors import DataError
from bayesify.data.readers.cifar import CLASSES, read_batch


def write_batch(path, *, count=20, start=0):
    rng = np.random.default_rng(start)
    pixels = rng.integers(256, size=(count, 3072), dtype=np.uint8)
    batch = {b"batch_label": b"", b"labels": [i % 10 for i in range(count)], b"data": pixels}
    path.write_bytes(pickle.dumps(batch, protocol=3))
    return pixels


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(1, 6):
        write_batch(folder / f"data_batch_{number}", start=number)
    write_batch(folder / "test_batch")
    return folder


def test_pixels_keep_their_places(tmp_path):
    pixels = write_batch(tmp_path / "batch")
    images, labels = read_batch(tmp_path / "batch")
    assert images[3, 1, 2, 5].item() == pixels[3, 1024 + 2 * 32 + 5]
    assert labels[:3].tolist() == [0, 1, 2]


def test_six_batches_make_a_set(folder):
    parts = data.splits("cifar10", data_dir=folder.parent)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (85, 15, 20)
    assert parts.input_shape == (3, 32, 32)
    assert parts.class_names == CLASSES
    assert parts.normalise.loc.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert parts.normalise.scale.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_training_and_test_images_are_not_mixed(folder):
    parts = data.splits("cifar10", data_dir=folder)
    assert torch.equal(parts.test.x, read_batch(folder / "test_batch")[0])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_a_pickle_that_would_run_code_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(DataError, match=r"test_batch: .*mkdir"):
        data.splits("cifar10", data_dir=folder)
    assert not (folder / "evil-was-here").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, protocol=3),
        pickle.dumps({b"data": np.zeros((1, 3071), np.uint8), b"labels": [1]}, protocol=3),
        pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}, protocol=3),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["cat"]}, protocol=3),
    ],
)
def test_a_file_that_is_no_batch_is_named(folder, content):
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_3: expected a CIFAR-10 batch"):
        data.splits("cifar10", data_dir=folder)


def test_a_truncated_batch_is_named(folder):
    path = folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data_batch_3: .*truncated"):
        data.splits("cifar10", data_dir=folder)


def test_five_batches_are_not_a_set(folder):
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="looked in"):
        data.splits("cifar10", data_dir=folder)
