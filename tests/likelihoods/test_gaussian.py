import json
import math

import pytest
import torch
from torch import distributions as D
from torch.nn import functional as F

from bayesify.core.errors import OptionError
from bayesify.likelihoods import Gaussian
from bayesify.likelihoods.gaussian import MIN_VARIANCE

MANY = 100_000


def test_gaussian_with_fixed_noise_is_torchs():
    outputs, target = torch.randn(3, 4, 2).double(), torch.randn(4, 2).double()
    want = D.Normal(outputs, 0.3).log_prob(target).sum(-1)
    torch.testing.assert_close(Gaussian(0.3).log_prob(outputs, target), want)


def test_gaussian_with_learnt_noise_is_torchs():
    likelihood = Gaussian("learnt")
    with torch.no_grad():
        likelihood.log_scale.fill_(0.7)
    outputs, target = torch.randn(3, 4, 1), torch.randn(4)
    want = D.Normal(outputs[..., 0], math.exp(0.7)).log_prob(target)
    torch.testing.assert_close(likelihood.log_prob(outputs, target).detach(), want)
    assert likelihood.predictive(outputs).scale.item() == pytest.approx(math.exp(0.7))
    assert not likelihood.predictive(outputs).scale.requires_grad


def test_gaussian_reads_noise_from_the_output():
    outputs, target = torch.randn(3, 4, 4), torch.randn(4, 2)
    loc, rho = outputs[..., :2], outputs[..., 2:]
    want = D.Normal(loc, F.softplus(rho)).log_prob(target).sum(-1)
    torch.testing.assert_close(
        Gaussian("output").log_prob(outputs, target), want, rtol=1e-3, atol=1e-4
    )
    assert Gaussian("output").predictive(outputs).loc.shape == (3, 4, 2)


def test_gaussian_takes_outputs_and_targets_without_dimension():
    outputs, target = torch.randn(3, 4), torch.randn(4)
    want = Gaussian(1.0).log_prob(outputs.unsqueeze(-1), target.unsqueeze(-1))
    assert torch.equal(Gaussian(1.0).log_prob(outputs, target), want)
    assert torch.equal(Gaussian(1.0).log_prob(outputs, target.unsqueeze(-1)), want)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, "learned"])
def test_an_impossible_noise_is_refused(scale):
    with pytest.raises(OptionError, match=r"expected a number above 0, 'learnt' or 'output'"):
        Gaussian(scale)


def learnt(scale: float) -> Gaussian:
    likelihood = Gaussian("learnt")
    with torch.no_grad():
        likelihood.log_scale.fill_(math.log(scale))
    return likelihood


@pytest.mark.parametrize(
    ("likelihood", "output", "scale"),
    [
        (Gaussian(0.3), [1.0, -5.0], [0.3, 0.3]),
        (Gaussian(0.3, degrees=3), [1.0, -5.0], [0.3, 0.3]),
        (learnt(2.0), [1.0, -5.0], [2.0, 2.0]),
        (Gaussian("output"), [1.0, -5.0, 0.0, 3.0], [math.log(2), math.log1p(math.exp(3))]),
    ],
)
def test_draws_are_normal_and_their_scores_have_the_fisher_information(
    likelihood, output, scale, generator
):
    outputs = torch.tensor(output).double().expand(2, MANY, -1).clone().requires_grad_()
    loc, scale = outputs.detach()[..., :2], torch.tensor(scale).double()
    drawn = likelihood.sample(outputs, generator=generator)
    assert drawn.shape == (2, MANY, 2)
    assert not drawn.requires_grad
    z = ((drawn - loc) / scale).flatten(0, 1)
    for power, moment in enumerate((0, 1, 0, 3), start=1):
        want = torch.full((2,), float(moment)).double()
        torch.testing.assert_close(z.pow(power).mean(0), want, rtol=0, atol=0.12)
    assert z.prod(-1).mean().item() == pytest.approx(0, abs=0.01)

    log_prob = likelihood.log_prob(outputs.flatten(0, 1)[None], drawn.flatten(0, 1))
    (scores,) = torch.autograd.grad(log_prob.sum(), outputs)
    got = torch.einsum("sbi,sbj->ij", scores, scores) / (2 * MANY)
    want = 1 / scale.square()
    if likelihood.kind == "output":  # scale = softplus(rho), with slope sigmoid(rho)
        slope = torch.sigmoid(outputs.detach()[0, 0, 2:])
        want = torch.cat([want, 2 * (slope / scale).square()])
    relative = got / (want.sqrt().outer(want.sqrt()))
    torch.testing.assert_close(relative, torch.eye(len(want)).double(), rtol=0, atol=0.02)


def test_draws_of_outputs_without_dimension_fit_the_density():
    outputs = torch.randn(3, 4)
    drawn = Gaussian(1.0).sample(outputs)
    assert drawn.shape == (3, 4, 1)
    assert Gaussian(1.0).log_prob(outputs.flatten()[None], drawn.flatten(0, 1)).shape == (1, 12)


@pytest.mark.parametrize("likelihood", [Gaussian(0.3), learnt(0.3), Gaussian(0.3, degrees=4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_output_precision_is_the_curvature(likelihood, dtype):
    got = likelihood.output_precision(torch.zeros(2, 3, 2, dtype=dtype))
    assert got.shape == ()
    assert not got.requires_grad
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    def negative(output):
        return -likelihood.log_prob(output[None, None], torch.ones(1, 2)).sum()

    curvature = torch.autograd.functional.hessian(negative, torch.randn(2))
    torch.testing.assert_close(curvature, got.float() * torch.eye(2))


def test_noise_from_the_output_has_no_constant_curvature():
    assert Gaussian("output").output_precision(torch.zeros(2, 3, 2)) is None


@pytest.mark.parametrize(
    ("outputs", "target"),
    [
        (torch.randn(3, 5, 2), torch.randn(5, 2)),
        (torch.randn(3, 5, 1), torch.randn(5)),
        (torch.randn(3, 5), torch.randn(5)),
        (torch.randn(3, 5).double(), torch.randn(5).double()),
        (torch.randn(3, 5, 2, requires_grad=True), torch.randn(5, 2)),
    ],
)
def test_noise_is_reestimated_as_the_mean_squared_residual(outputs, target):
    likelihood = learnt(0.5)
    parameter = likelihood.log_scale
    flat = outputs.detach().float().reshape(3, 5, -1)
    residual = target.float().reshape(5, -1) - flat
    likelihood.reestimate_(outputs, target, rate=1.0)
    variance = (2 * likelihood.log_scale).exp().item()
    assert variance == pytest.approx(residual.square().mean().item(), rel=1e-5)
    assert likelihood.log_scale is parameter
    assert parameter.requires_grad
    assert parameter.grad is None


def test_the_reestimated_noise_maximises_the_density():
    likelihood, outputs, target = learnt(0.5), torch.randn(3, 5, 2), torch.randn(5, 2)
    likelihood.reestimate_(outputs, target, rate=1.0)
    mean = likelihood.log_prob(outputs, target).mean()
    (slope,) = torch.autograd.grad(mean, likelihood.log_scale)
    assert slope.item() == pytest.approx(0, abs=1e-5)


def test_small_rates_move_the_average_of_variances():
    likelihood, variance = learnt(0.5), 0.25
    for _ in range(3):
        outputs, target = torch.randn(2, 6, 1), torch.randn(6)
        squared = (target.unsqueeze(-1) - outputs).square().mean().item()
        variance = 0.9 * variance + 0.1 * squared
        likelihood.reestimate_(outputs, target, rate=0.1)
        assert (2 * likelihood.log_scale).exp().item() == pytest.approx(variance, rel=1e-5)


def test_reestimated_noise_has_a_floor():
    likelihood, same = learnt(0.5), torch.randn(4, 2)
    likelihood.reestimate_(same[None], same, rate=1.0)
    assert (2 * likelihood.log_scale).exp().item() == pytest.approx(MIN_VARIANCE, rel=1e-5)


@pytest.mark.parametrize("kind", [0.5, "output"])
def test_only_learnt_noise_is_reestimated(kind):
    likelihood = Gaussian(kind)
    likelihood.reestimate_(torch.randn(2, 3, 2), torch.randn(3), rate=1.0)
    assert likelihood.kind == kind
    assert not likelihood.state_dict()


@pytest.mark.parametrize("kind", [0.5, "learnt", "output"])
def test_degrees_touch_the_predictive_alone(kind):
    heavy, plain = Gaussian(kind, degrees=4.5), Gaussian(kind)
    outputs, target = torch.randn(3, 4, 2), torch.randn(4, 1 if kind == "output" else 2)
    assert torch.equal(heavy.log_prob(outputs, target), plain.log_prob(outputs, target))
    assert heavy.predictive(outputs).degrees == 4.5
    assert plain.predictive(outputs).degrees is None
    assert torch.equal(heavy.predictive(outputs).variance, plain.predictive(outputs).variance)


@pytest.mark.parametrize("degrees", [None, 3, 4.5])
@pytest.mark.parametrize("kind", [0.5, "learnt", "output"])
def test_options_survive_json(kind, degrees):
    options = json.loads(json.dumps(Gaussian(kind, degrees).options()))
    again = Gaussian(**options)
    assert (again.kind, again.degrees) == (kind, degrees)


@pytest.mark.parametrize("degrees", [2, 2.0, 0, -1.0, True, math.inf, math.nan, "4"])
def test_impossible_degrees_are_refused(degrees):
    with pytest.raises(OptionError, match=r"degrees=.*: expected .* above 2 .*; pass 4"):
        Gaussian(1.0, degrees)


def test_noise_is_fitted_to_the_residuals_in_any_unit():
    """Truth: the maximum of the likelihood in the scale is the root mean square residual."""
    for unit in (1e-6, 1.0, 1e6):
        target = unit * torch.randn(500, 2)
        outputs = target + 0.1 * unit * torch.randn(500, 2)
        likelihood = Gaussian("learnt")
        assert likelihood.fit_to_(outputs[None], target)
        want = (outputs - target).square().mean().sqrt()
        torch.testing.assert_close(likelihood.log_scale.detach().exp(), want, rtol=1e-4, atol=0)
        assert not likelihood.fit_to_(2 * outputs[None], target)  # it has been, and is kept
    assert not Gaussian("output").fit_to_(torch.randn(1, 9, 2), torch.randn(9))


def test_noise_of_a_network_that_interpolates_stays_above_zero():
    target = torch.randn(50, 1)
    likelihood = Gaussian("learnt")
    assert likelihood.fit_to_(target[None], target)
    floor = MIN_VARIANCE**0.5 * target.std(correction=0)
    torch.testing.assert_close(likelihood.log_scale.detach().exp(), floor)
