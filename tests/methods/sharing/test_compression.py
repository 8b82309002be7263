import pytest
import torch

import bayesify
from bayesify import (
    MAP,
    DiagonalLaplace,
    MeanField,
    SharedNormal,
    Sizes,
    WeightPosterior,
    WeightSharing,
    compressed,
    fit,
    load,
    matrices,
    save,
)
from bayesify.core.errors import UnsupportedModelError
from bayesify.likelihoods import Categorical
from bayesify.models import build
from bayesify.posteriors.persistence import disk_bytes
from zoo import NETS


@pytest.fixture
def wide():
    net = build("cnn", (3, 16, 16), 10, seed=0)
    q = MeanField.around(net, where=matrices, scale=0.1, relative=True)
    return WeightPosterior(net, q, Categorical())


def test_a_mean_field_posterior_becomes_a_shared_one_with_nearly_the_same_predictions(wide):
    x = torch.randn(8, 3, 16, 16)
    small = compressed(wide, codes=256)
    assert isinstance(small.q, SharedNormal)
    assert small.q.names == wide.q.names
    given, got = (each.predict(x, num_samples=50).probs for each in (wide, small))
    coarse = compressed(wide, codes=2, outliers=0.0).predict(x, num_samples=50).probs
    assert (given - got).abs().max() < 0.01
    assert (given - got).abs().max() < 0.2 * (given - coarse).abs().max()
    assert small.trainable_parameters < wide.trainable_parameters / 20


def test_the_posterior_given_stays_as_it_is(wide):
    before = {name: each.clone() for name, each in wide.q.state_dict().items()}
    compressed(wide)
    assert all(torch.equal(each, before[n]) for n, each in wide.q.state_dict().items())


def test_what_is_shared_already_stays(wide):
    small = compressed(wide, codes=16)
    assert compressed(small, codes=4).q is small.q


def test_the_same_seed_makes_the_same_file(wide, tmp_path):
    for name in ("a", "b"):
        save(compressed(wide, codes=16, seed=3), tmp_path / name)
    first, again = ((tmp_path / n / "q.safetensors").read_bytes() for n in ("a", "b"))
    assert first == again


@pytest.mark.parametrize(("codes", "bits"), [(16, 4), (64, 6), (256, 8)])
def test_bytes_are_the_bits_of_the_codes_the_outliers_and_little_else(wide, tmp_path, codes, bits):
    small = compressed(wide, codes=codes)
    sizes = Sizes.of(save(small, tmp_path / "a"), small)
    weights = sum(each.numel() for each in wide.q.loc.parameters())
    outliers = len(small.q.own_loc)
    assert outliers == round(0.01 * weights)
    least = weights * bits / 8 + 3 * outliers
    base = sum(each.numel() * each.element_size() for each in small.base().values())
    assert sizes.saved == disk_bytes(tmp_path / "a")
    assert least < sizes.saved < least + 2 * outliers + base + 6 * codes + 8_000
    assert sizes.network == 4 * weights + base
    assert sizes.pair == sizes.network + 4 * weights
    assert sizes.of_pair == sizes.saved / sizes.pair


def test_it_comes_back_with_identical_predictions(wide, tmp_path):
    x = torch.randn(4, 3, 16, 16)
    small = compressed(wide, codes=64, blending=True)
    again = load(save(small, tmp_path / "a"), build("cnn", (3, 16, 16), 10, seed=1))
    assert torch.equal(again.predict(x).probs, small.predict(x).probs)


def test_the_record_of_the_fit_goes_along(tmp_path):
    net, data = NETS["mlp"].model(), NETS["mlp"].data()
    method = DiagonalLaplace(pretrain=MAP(epochs=1), factor=0.1)
    small = compressed(fit(net, data, method), codes=8)
    assert small.record is not None
    assert load(save(small, tmp_path / "a"), net).record == small.record


def test_other_posteriors_are_refused_with_what_to_do():
    posterior = fit(NETS["mlp"].model(), NETS["mlp"].data(), MAP(epochs=1))
    with pytest.raises(UnsupportedModelError, match="got Particles; fit one of these first"):
        compressed(posterior)


def test_the_method_and_the_function_agree():
    net, data = NETS["mlp"].model(), NETS["mlp"].data()
    source = DiagonalLaplace(pretrain=None, where=matrices, factor=0.2)
    method = WeightSharing(pretrain=None, mean_field=source, codes=16, outliers=0.1)
    shared = fit(net, data, method, seed=0)
    again = compressed(fit(net, data, source, seed=0), codes=16, outliers=0.1)
    wide, narrow = shared.q.scale(), again.q.scale()
    for name, each in shared.point().items():
        torch.testing.assert_close(each, again.point()[name], rtol=0.2, atol=0.05)
        torch.testing.assert_close(wide[name], narrow[name], rtol=0.5, atol=0.05)
    assert bayesify.compressed is compressed
