import pytest
import torch

from bayesify.core.errors import DataError
from bayesify.data.resize import conform


def test_images_of_the_right_shape_stay_as_they_are():
    images = torch.rand(3, 1, 5, 5)
    assert torch.equal(conform(images, (1, 5, 5)), images)


def test_grey_is_repeated():
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(conform(images, (3, 4, 4)), images.repeat(1, 3, 1, 1))


def test_colour_is_averaged():
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(conform(images, (1, 4, 4)), images.mean(1, keepdim=True))


@pytest.mark.parametrize("size", [(4, 4), (17, 9)])
def test_sizes_are_interpolated_within_range(size):
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    got = conform(images, (3, *size))
    assert got.shape == (2, 3, *size)
    assert (got.min() >= 0) & (got.max() <= 1)


def test_features_are_no_images():
    with pytest.raises(DataError, match="must be images too"):
        conform(torch.rand(4, 13), (1, 8, 8))
