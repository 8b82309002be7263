import pytest
import torch
from PIL import Image

from bayesify import data
from bayesify.core.errors import DataError


def paint(path, *, mode="RGB", size=(12, 10), value=128, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size, value if mode != "RGB" else (value, seed % 256, 0))
    image.save(path)


@pytest.fixture
def root(tmp_path):
    for kind in ("cat", "dog"):
        for number in range(20):
            paint(tmp_path / "pets" / kind / f"{number:02}.png", seed=number)
    return tmp_path / "pets"


def test_a_folder_per_class_is_a_set(root):
    parts = data.splits(root)
    assert (parts.class_names, parts.input_shape) == (("cat", "dog"), (3, 10, 12))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (27, 5, 8)
    assert parts.train.x.dtype == torch.uint8


def test_given_parts_are_kept(tmp_path):
    for part, count in {"train": 20, "test": 4}.items():
        for kind in ("cat", "dog"):
            for number in range(count):
                paint(tmp_path / part / kind / f"{number}.jpg", value=100 if part == "test" else 50)
    parts = data.splits(tmp_path)
    assert len(parts.test) == 8
    assert parts.test.x[:, 0].float().mean().item() == pytest.approx(100, abs=3)


def test_grey_images_have_one_channel_unless_others_have_colour(tmp_path, root):
    for kind in ("a", "b"):
        for number in range(20):
            paint(tmp_path / "grey" / kind / f"{number}.png", mode="L")
    assert data.splits(tmp_path / "grey").input_shape == (1, 10, 12)
    paint(root / "cat" / "grey.png", mode="L")
    assert data.splits(root).input_shape == (3, 10, 12)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_images_of_eight_bits_are_read(tmp_path, mode):
    for kind in ("a", "b"):
        for number in range(20):
            paint(tmp_path / kind / f"{number}.png", mode=mode)
    assert data.splits(tmp_path).input_shape[1:] == (10, 12)


def test_sizes_must_agree_or_be_chosen(root):
    paint(root / "dog" / "large.png", size=(30, 20))
    with pytest.raises(DataError, match=r"large\.png: .*10x12.*got 20x30; pass image_size="):
        data.splits(root)
    assert data.splits(root, image_size=(8, 6)).input_shape == (3, 8, 6)
    assert data.splits(root, image_size=8).input_shape == (3, 8, 8)


def test_an_image_that_cannot_be_read_is_named(root):
    whole = (root / "cat" / "00.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (root / "dog" / "broken.png").write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.png: expected an image"):
            data.splits(root)


def test_deep_images_are_refused(root):
    paint(root / "dog" / "deep.png", mode="I;16")
    with pytest.raises(DataError, match="eight bits"):
        data.splits(root)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="found none"):
        data.splits(tmp_path)


def test_a_class_that_was_not_trained_on_is_refused(tmp_path):
    for path in ("train/a", "train/b", "test/a", "test/c"):
        paint(tmp_path / path / "1.png")
    with pytest.raises(DataError, match="got 'c'"):
        data.splits(tmp_path)


def test_one_class_is_too_few_to_learn_but_may_be_foreign(tmp_path):
    paint(tmp_path / "thing" / "1.png", value=255)
    with pytest.raises(DataError, match="one only"):
        data.splits(tmp_path)
    assert data.ood(tmp_path, data.splits("digits")).x.shape == (1, 1, 8, 8)
