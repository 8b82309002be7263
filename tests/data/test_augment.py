from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bayesify import data
from bayesify.core.errors import DataError, OptionError
from bayesify.data.augment import CropAndFlip, crop


@pytest.fixture
def images():
    return torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.01


@pytest.fixture(autouse=True)
def global_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def windows(image, padding):
    padded = F.pad(image, (padding,) * 4)
    return padded.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)


def test_every_crop_is_a_window_of_the_padded_image(images):
    for image, cut in zip(images, crop(images, 2), strict=True):
        assert (windows(image, 2) == cut).flatten(1).all(1).any()


def test_images_move_by_their_own_offsets_both_ways(images):
    same = images[:1].expand(64, -1, -1, -1)
    assert len(crop(same, 2).unique(dim=0)) > 15  # of 25


def test_no_padding_and_no_flip_is_the_identity(images):
    assert torch.equal(CropAndFlip(0, flip=False)(images), images)


def test_half_of_the_images_are_mirrored(images):
    flipped = CropAndFlip(0)(images)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert 16 < mirrored.sum() < 48


def test_only_training_images_change_and_black_comes_before_normalisation():
    digits = data.splits("digits")
    crops = data.augmented(digits)
    assert crops.test is digits.test
    assert crops.validation is digits.validation
    x, y = crops.train.batch(torch.arange(200))
    assert torch.equal(y, digits.train.y[:200])
    black = digits.normalise(torch.zeros(1, 1, 1))
    torch.testing.assert_close(x.min(), black.min())


def test_each_visit_draws_anew():
    crops = data.augmented(data.splits("digits"))
    assert not torch.equal(crops.train[0][0], crops.train[0][0])


def test_features_cannot_be_augmented():
    features = replace(data.splits("digits"), input_shape=(64,))
    with pytest.raises(DataError, match="expected images"):
        data.augmented(features)


def test_padding_is_not_negative():
    with pytest.raises(OptionError, match="at least 0"):
        data.augmented(data.splits("digits"), padding=-1)
