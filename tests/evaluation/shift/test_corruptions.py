import colorsys
import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.evaluation.shift.corruptions import CORRUPTIONS, SEVERITIES, corrupt, families_for

BLURS = ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur")
GREY = torch.full((100, 1, 20, 20), 0.5)


@pytest.fixture(scope="module")
def photos():
    """Thirty pieces (3, 32, 32) of scikit-learn's two photographs."""
    pictures = torch.from_numpy(np.stack(load_sample_images().images)).movedim(-1, 1).float() / 255
    small = F.avg_pool2d(pictures, 4)
    pieces = small.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5)
    return pieces.reshape(-1, 3, 32, 32).contiguous()


@pytest.fixture(scope="module")
def spot():
    """One white pixel in the middle of a black image."""
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 16] = 1
    return image


def ramp(axis, side=33, count=1):
    """Images whose values are the row (axis 2) or column (axis 3) number over `side`."""
    shape = [side if each == axis else 1 for each in range(4)]
    return (torch.arange(side) / side).reshape(shape).expand(count, 1, side, side)


def middle(images, margin=12):
    return images[..., margin:-margin, margin:-margin]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_image_is_another_image_of_the_same_shape(photos, name):
    before = photos.clone()
    for severity in SEVERITIES:
        after = corrupt(photos, name, severity)
        assert after.shape == photos.shape
        assert after.dtype == torch.float32
        assert 0 <= after.min() < after.max() <= 1
        assert not torch.equal(after, photos)
    assert torch.equal(photos, before)


@pytest.mark.parametrize("name", families_for(1))
def test_small_and_oblong_grey_images_are_welcome(name):
    images = torch.rand(2, 1, 8, 5, generator=torch.Generator().manual_seed(0))
    assert corrupt(images, name, 5).shape == images.shape
    assert corrupt(images.double(), name, 5).dtype == torch.float32


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_batches_may_be_cut_anywhere(photos, name):
    whole = corrupt(photos, name, 3, seed=7)
    for size in (1, 4, 11):
        parts = [
            corrupt(photos[start : start + size], name, 3, seed=7, start=start)
            for start in range(0, len(photos), size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_randomness_is_that_of_the_seed_alone(photos, name):
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.get_rng_state()
    first = corrupt(photos, name, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(corrupt(photos, name, 2), first)
    random = name.endswith("_noise") or name in ("motion_blur", "elastic_transform")
    assert torch.equal(corrupt(photos, name, 2, seed=1), first) != random


@pytest.mark.parametrize(
    "name", [each for each in CORRUPTIONS if each not in ("saturate", "elastic_transform")]
)
def test_damage_grows_with_severity(photos, name):
    damage = [float((corrupt(photos, name, each) - photos).square().mean()) for each in SEVERITIES]
    if name == "motion_blur":  # 3 and 4 are the same but for the angles
        assert damage.pop(3) == pytest.approx(damage[2], rel=0.2)
    assert all(less < more for less, more in itertools.pairwise(damage))


def test_saturate_grows_paler_and_then_gaudier(photos):
    damage = [(corrupt(photos, "saturate", each) - photos).square().mean() for each in SEVERITIES]
    assert damage[0] < damage[1]
    assert damage[2] < damage[3] < damage[4]


# ---------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_moments_of_noise_are_the_closed_forms(severity):
    sd = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    photons = (500, 250, 100, 75, 50)[severity - 1]
    speckle = (0.06, 0.10, 0.12, 0.16, 0.20)[severity - 1]
    for name, want in (
        ("gaussian_noise", sd),
        ("shot_noise", math.sqrt(0.5 / photons)),
        ("speckle_noise", 0.5 * speckle),
    ):
        noise = corrupt(GREY, name, severity) - 0.5
        count = noise.numel()  # 40 000 values, of which at most 1 in 10^6 is clipped
        assert noise.mean().item() == pytest.approx(0, abs=4 * want / math.sqrt(count))
        assert noise.std().item() == pytest.approx(want, rel=4 / math.sqrt(2 * count))


def test_shot_noise_counts_light():
    counts = corrupt(GREY, "shot_noise", 5) * 50
    assert (counts - counts.round()).abs().max() < 1e-4
    dark = corrupt(GREY / 5, "shot_noise", 1)
    assert dark.var().item() == pytest.approx(0.1 / 500, rel=0.05)
    assert not corrupt(torch.zeros(1, 1, 4, 4), "shot_noise", 5).any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_turns_its_share_of_values_black_and_white(severity):
    half = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1] / 2
    noisy = corrupt(GREY, "impulse_noise", severity)
    error = 4 * math.sqrt(half / noisy.numel())
    assert (noisy == 0).double().mean().item() == pytest.approx(half, abs=error)
    assert (noisy == 1).double().mean().item() == pytest.approx(half, abs=error)
    assert set(noisy.unique().tolist()) == {0.0, 0.5, 1.0}


def test_speckle_leaves_black_black():
    assert not corrupt(torch.zeros(1, 3, 4, 4), "speckle_noise", 5).any()


# ----------------------------------------------------------------------------------------- blur


@pytest.mark.parametrize("name", BLURS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blurs_leave_constant_images_constant(name, severity):
    grey = GREY[:3] * 0.6
    torch.testing.assert_close(corrupt(grey, name, severity), grey)


@pytest.mark.parametrize("name", BLURS[:3])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blurs_spread_light_and_lose_none(spot, name, severity):
    blurred = corrupt(spot, name, severity)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert blurred.max() < 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_the_analytic_kernel(photos, severity):
    sd = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    reach = int(4 * sd + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sd) ** 2)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    padded = F.pad(photos, (reach,) * 4, mode="replicate")
    want = F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)
    torch.testing.assert_close(corrupt(photos, "gaussian_blur", severity), want)


def test_lengths_grow_with_large_images_only():
    generator = torch.Generator().manual_seed(0)
    for side, sd in ((64, 1.0), (128, 2.0)):
        image = torch.rand(side, side + 3, generator=generator)
        want = gaussian_filter(image.numpy(), sd, mode="nearest")
        got = corrupt(image[None, None], "gaussian_blur", 5)[0, 0]
        torch.testing.assert_close(got, torch.from_numpy(want))


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_a_disk_of_one_pixel_is_softened_by_three_gaussian_weights(spot, severity):
    weight = math.exp(-0.5 / (0.4, 0.5, 0.6)[severity - 1] ** 2)
    three = torch.tensor([weight, 1, weight]) / (1 + 2 * weight)
    want = torch.zeros_like(spot)
    want[0, 0, 15:18, 15:18] = torch.outer(three, three)
    torch.testing.assert_close(corrupt(spot, "defocus_blur", severity), want)


def test_larger_disks_are_a_cross_and_a_square(spot):
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    got = corrupt(spot, "defocus_blur", 4)[0, 0, 15:18, 15:18]
    torch.testing.assert_close(got, cross, rtol=0, atol=1e-5)  # the softening is exp(-12.5)
    got = corrupt(spot, "defocus_blur", 5)[0, 0, 15:18, 15:18]
    torch.testing.assert_close(got, torch.full((3, 3), 1 / 9))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_moves_a_ramp_by_the_mean_of_its_trail(severity):
    sd = (1.0, 1.5, 2.0, 2.0, 2.5)[severity - 1]
    weights = np.exp(-0.5 * (np.arange(math.ceil(4 * sd) + 1) / sd) ** 2)
    length = (weights * np.arange(len(weights))).sum() / weights.sum()
    down, right = (
        33 * middle(corrupt(ramp(axis, count=40), "motion_blur", severity) - ramp(axis, count=40))
        for axis in (2, 3)
    )
    torch.testing.assert_close(torch.hypot(down, right), torch.full_like(down, length))
    angle = torch.atan2(down, right).mean((1, 2, 3)) * 180 / math.pi
    assert -45 <= angle.min() < -30
    assert 30 < angle.max() <= 45


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_blur_flattens_a_ramp_about_its_middle(severity):
    last = (1.06, 1.11, 1.15, 1.20, 1.25)[severity - 1]
    zooms = np.arange(1, last + 0.005, 0.01)
    slope = (1 + (1 / zooms).sum()) / (1 + len(zooms))
    image = ramp(3)
    want = 16 / 33 + slope * (image - 16 / 33)
    torch.testing.assert_close(corrupt(image, "zoom_blur", severity), want)


# ----------------------------------------------------------------------------------- photometric


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_contrast_of_grey_images_by_hand(severity):
    x = torch.rand(4, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = 0
    added = (0.05, 0.10, 0.15, 0.20, 0.30)[severity - 1]
    torch.testing.assert_close(corrupt(x, "brightness", severity), (x + added).clamp(max=1))
    factor = (0.75, 0.50, 0.40, 0.30, 0.15)[severity - 1]
    mean = x.flatten(1).mean(1).reshape(4, 1, 1, 1)
    torch.testing.assert_close(corrupt(x, "contrast", severity), factor * x + (1 - factor) * mean)


def test_contrast_keeps_the_mean_of_every_channel(photos):
    means = corrupt(photos, "contrast", 5).mean((2, 3))
    torch.testing.assert_close(means, photos.mean((2, 3)))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturate_are_those_of_colorsys(photos, severity):
    images = photos[:2].clone()
    images[0, :, 0, 0], images[0, :, 0, 1], images[0, :, 0, 2] = 0.0, 0.4, 1.0  # black, grey, white
    added = (0.05, 0.10, 0.15, 0.20, 0.30)[severity - 1]
    times, plus = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    brighter, gaudier = [], []
    for colour in images.double().movedim(1, -1).reshape(-1, 3).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        brighter.append(colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1)))
        gaudier.append(colorsys.hsv_to_rgb(hue, min(saturation * times + plus, 1), value))
    for name, want in (("brightness", brighter), ("saturate", gaudier)):
        got = corrupt(images, name, severity).movedim(1, -1).reshape(-1, 3)
        torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=2e-6)


# --------------------------------------------------------------------------------------- digital


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_makes_of_the_bytes(photos, severity, channels):
    images = photos[:3, :channels]
    got = corrupt(images, "jpeg_compression", severity)
    for image, result in zip(images, got, strict=True):
        pixels = (image * 255).round().byte()
        pixels = pixels[0].numpy() if channels == 1 else pixels.permute(1, 2, 0).numpy()
        file = io.BytesIO()
        quality = (80, 65, 58, 50, 40)[severity - 1]
        Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
        want = torch.from_numpy(np.array(Image.open(file)).reshape(32, 32, channels))
        torch.testing.assert_close(result, want.permute(2, 0, 1) / 255)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_the_mean_of_every_block(severity):
    image = torch.rand(28, 11, generator=torch.Generator().manual_seed(0))
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    rows, columns = (
        [int((each + 0.5) * int(share * side) / side) for each in range(side)] for side in (28, 11)
    )
    blocks: dict[tuple[int, int], list[float]] = {}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            blocks.setdefault((row, column), []).append(image[i, j].item())
    want = [[np.mean(blocks[row, column]) for column in columns] for row in rows]
    got = corrupt(image[None, None], "pixelate", severity)[0, 0]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float32))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows_box_there_and_back(photos, severity):
    side = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    got = corrupt(photos[:3], "pixelate", severity)
    for image, result in zip(photos[:3].flatten(0, 1), got.flatten(0, 1), strict=True):
        small = Image.fromarray(image.numpy()).resize((side, side), Image.Resampling.BOX)
        want = np.array(small.resize((32, 32), Image.Resampling.BOX))
        torch.testing.assert_close(result, torch.from_numpy(want))


def places(severity, count=48, side=64):
    """Where the pixels of the middle are taken from, (B, P, 2), and their own places (P, 2)."""
    taken = [
        middle(side * corrupt(ramp(axis, side, count), "elastic_transform", severity), 20)
        for axis in (2, 3)
    ]
    own = torch.cartesian_prod(torch.arange(20.0, side - 20), torch.arange(20.0, side - 20))
    return torch.stack(taken, -1).reshape(count, -1, 2), own


def affine_part(taken, own):
    design = F.pad(own, (0, 1), value=1.0).double().expand(len(taken), -1, -1)
    return torch.linalg.lstsq(design, taken.double()).solution, design


def test_the_mildest_elastic_transform_is_affine_and_moves_three_corners():
    taken, own = places(1)
    back, design = affine_part(taken, own)
    assert (design @ back - taken).abs().max() < 1e-3
    half, centre = 64 / 3, 63 / 2
    square = centre + half * torch.tensor([[1.0, 1], [1, -1], [-1, -1]], dtype=torch.float64)
    there = (square - back[:, 2:]) @ torch.linalg.inv(back[:, :2])
    moved = (there - square).abs().flatten()
    assert moved.max() <= 0.08 * 64 + 1e-2
    assert moved.mean().item() == pytest.approx(0.04 * 64, rel=0.15)  # uniform in +-0.08


def test_elastic_transform_ripples_by_the_smoothed_noise():
    ripples = []
    for severity, strength, smoothness in ((3, 0.08, 0.06), (4, 0.1, 0.04), (5, 0.1, 0.03)):
        taken, own = places(severity)
        back, design = affine_part(taken, own)
        ripple = (taken - design @ back).std().item()
        # Noise of variance 1/3 under a Gaussian kernel of this sd is a field of covariance
        # variance * exp(-distance^2 / (4 sd^2)); what it has in common with affine maps of the
        # pixels looked at is projected out.
        sd = smoothness * 64
        variance = (strength * 64) ** 2 / 3 / (4 * math.pi * sd**2)
        covariance = variance * torch.exp(-((torch.cdist(own, own).double() / (2 * sd)) ** 2))
        basis = torch.linalg.qr(design[0]).Q
        want = (covariance.trace() - (basis.mT @ covariance @ basis).trace()) / len(own)
        assert ripple == pytest.approx(want.sqrt().item(), rel=0.05)
        ripples.append(ripple)
    assert ripples == sorted(ripples)


# ---------------------------------------------------------------------------------------- errors


def test_only_images_in_the_unit_interval_are_taken():
    with pytest.raises(ShapeError, match="1 or 3 channels"):
        corrupt(torch.rand(2, 4, 8, 8), "contrast", 1)
    with pytest.raises(ShapeError, match="at least one"):
        corrupt(torch.rand(0, 1, 8, 8), "contrast", 1)
    with pytest.raises(DataError, match="divide by 255"):
        corrupt(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "contrast", 1)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(DataError, match="before they are normalised"):
            corrupt(torch.full((1, 1, 8, 8), wrong), "contrast", 1)


def test_unknown_names_and_severities_are_refused():
    with pytest.raises(OptionError, match="gaussian_noise, shot_noise"):
        corrupt(GREY, "rain", 1)
    with pytest.raises(OptionError, match="with 1 channel"):
        corrupt(GREY, "saturate", 1)
    for severity in (0, 6, 2.0):
        with pytest.raises(OptionError, match="from 1 to 5"):
            corrupt(GREY, "contrast", severity)
    with pytest.raises(OptionError, match="start=-1"):
        corrupt(GREY, "contrast", 1, start=-1)


def test_grey_images_have_no_saturation():
    assert set(families_for(3)) == set(CORRUPTIONS)
    assert set(families_for(1)) == set(CORRUPTIONS) - {"saturate"}
    assert families_for(2) == ()
