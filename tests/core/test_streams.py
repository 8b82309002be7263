import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from bayesify import STF, MeanField, WeightPosterior, fit, load, save
from bayesify.core.streams import USES, salted, stream
from bayesify.likelihoods import Gaussian
from bayesify.posteriors.base import FitRecord

SIZE, SAMPLES = (64, 32), 8


def posterior(seed, record=True):
    """A linear map as torch initialises it after `manual_seed(seed)`, and a wide q around it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Linear(*SIZE, bias=False)
    q, record = MeanField.around(net, scale=1.0), FitRecord({}, seed, 1) if record else None
    return WeightPosterior(net, q, Gaussian(scale=1.0), record=record)


def noise(posterior):
    """(S, in * out) standard normal noise of the predictions, read off at unit vectors."""
    drawn = posterior.outputs(torch.eye(SIZE[0]), num_samples=SAMPLES) - posterior.model.weight.T
    return drawn.detach().flatten(1)


def z(one, other):
    """Correlations of rows (S, n) with (n,) or (S, n), in their null standard error n^(-1/2)."""
    one, other = (each - each.mean(-1, keepdim=True) for each in (one, other))
    return (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1)) * one.shape[-1] ** 0.5


def looks_null(found):
    """z of independent noise has sum of squares chi-square: n within 4 of its sqrt(2 n)."""
    n = found.numel()
    return abs(found.square().sum() - n) < 4 * (2 * n) ** 0.5


def test_streams_of_all_uses_and_seeds_differ():
    first = {
        torch.rand(2, generator=stream(seed, use)).sum().item()
        for use in USES
        for seed in (-1, *range(300), 2**40)
    }
    plain = {
        torch.rand(2, generator=torch.Generator().manual_seed(seed)).sum().item()
        for seed in range(300)
    }
    started = {salted(seed, use) % 2**32 for use in USES for seed in (-1, *range(300), 2**40)}
    assert len(started) == 302 * len(USES)
    assert len(first) > 0.999 * len(started)  # sums of two float32 coincide now and then
    assert len(first & plain) < 0.001 * len(started)


def test_a_stream_is_the_same_in_every_process():
    code = "from bayesify.core.streams import salted; print(salted(3, 'fit'))"
    for hashing in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hashing},
        )
        assert int(done.stdout) == salted(3, "fit")


def test_an_unknown_use_is_refused():
    with pytest.raises(ValueError, match="expected one of fit"):
        stream(0, "anything")


@pytest.mark.parametrize("record", [True, False])
def test_noise_of_predictions_has_nothing_to_do_with_initial_weights(record):
    """With one stream for both the first sample has r = -.37, z = -17, at seed 0."""
    seeds = [posterior(seed, record) for seed in range(10)] if record else [posterior(0, record)]
    found = torch.stack([z(noise(each), each.model.weight.T.flatten()) for each in seeds])
    assert looks_null(found)


def test_seeds_of_fits_give_predictions_noise_of_their_own():
    """So that a standard error over seeds has the noise of predictions in it."""
    one, other = posterior(0), posterior(0)
    other.record = FitRecord({}, 1, 1)
    assert torch.equal(noise(one), noise(posterior(0)))
    assert looks_null(z(noise(one), noise(other)))


def test_a_fit_predicts_from_the_stream_of_its_seed_and_so_does_what_was_saved(tmp_path):
    x = torch.randn(40, 3)
    data = x, x[:, :1]
    method = STF(pretrain=None, epochs=1)
    fits = [fit(nn.Linear(3, 1), data, method, likelihood="gaussian", seed=s) for s in (0, 5)]
    for seed, fitted in zip((0, 5), fits, strict=True):
        drawn = fitted.outputs(x, generator=stream(seed, "predict"))
        assert torch.equal(fitted.outputs(x), drawn)
        again = load(save(fitted, tmp_path / str(seed)), nn.Linear(3, 1))
        assert torch.equal(again.outputs(x), drawn)
