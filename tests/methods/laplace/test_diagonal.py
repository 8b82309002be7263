import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bayesify import (
    MAP,
    Categorical,
    DiagonalLaplace,
    Gaussian,
    WeightPosterior,
    first_layer,
    fit,
)
from bayesify.core.errors import DivergenceError, OptionError, UnsupportedModelError
from bayesify.distributions.mean_field import MeanField
from bayesify.weights.named import weights_of
from zoo import NETS, BranchingNet, Pairs

PLAIN = DiagonalLaplace(pretrain=None, factor=1.0)
NOISE, PRIOR = 0.5, 2.0

SIGNS = torch.ones(1, 1, dtype=torch.float64)
for _ in range(3):  # Hadamard's matrix of order 8: columns are orthogonal
    SIGNS = torch.cat([torch.cat([SIGNS, SIGNS], 1), torch.cat([SIGNS, -SIGNS], 1)])


def absolute(**changes) -> DiagonalLaplace:
    given = {"pretrain": None, "factor": 1.0, "prior_scale": PRIOR, "prior_relative": False}
    return DiagonalLaplace(**(given | changes))


def regression(copies: int = 1, size: float = 1.0) -> tuple[Tensor, Tensor]:
    x = size * SIGNS[:, 1:5].repeat(copies, 1)
    return x, x.sum(1)


def scale_of(posterior: WeightPosterior) -> Tensor:
    assert isinstance(posterior.q, MeanField)
    return torch.cat([each.detach().flatten() for each in posterior.q.scale.values()])


def linear() -> nn.Module:
    return nn.Linear(4, 1, bias=False).double()


def nll(posterior: WeightPosterior, data: Pairs) -> float:
    log_prob = posterior.predict(data.inputs, num_samples=10).log_prob(data.target)
    return -log_prob.mean().item()


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("size", [1.0, 3.0])
def test_on_linear_regression_with_orthogonal_inputs_it_is_the_posterior(copies, size):
    x, y = regression(copies, size)
    labels = 800 // copies
    posterior = fit(linear(), (x, y), absolute(labels=labels), likelihood=Gaussian(NOISE))
    exact = torch.linalg.inv(x.T @ x / NOISE**2 + torch.eye(4) / PRIOR**2)
    assert torch.equal(exact, torch.diag(exact.diagonal()))
    # N F_j is a mean of chi^2 numbers with one degree of freedom, of variance 2; a variance is
    # 1 / (N F_j + 1 / prior^2)
    error = math.sqrt(2 / (labels * len(x)))
    want = exact.diagonal()
    torch.testing.assert_close(scale_of(posterior) ** 2, want, rtol=5 * error, atol=0)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_drawn_labels_give_the_fisher_information_of_the_softmax(name):
    """sum_c p_c (d log p_c / dw)^2 is the diagonal of the generalised Gauss-Newton matrix."""
    net, labels = NETS[name], 100
    x, model = net.inputs(12).double(), net.model().double().eval()
    exact, spread = [], []
    for example in x:
        log_p = model(example[None]).log_softmax(1)[0]
        slopes = torch.stack(
            [
                nn.utils.parameters_to_vector(
                    torch.autograd.grad(each, list(model.parameters()), retain_graph=True)
                )
                for each in log_p
            ]
        )
        p = log_p.detach().exp()
        mean = p @ slopes**2
        exact.append(mean)
        spread.append(p @ slopes**4 - mean**2)
    want = torch.stack(exact).mean(0)
    error = (torch.stack(spread).clamp_min(0).sum(0) / labels).sqrt() / len(x)
    method = absolute(labels=labels)
    data = (x, torch.arange(12) % 3)
    got = (scale_of(fit(model, data, method, batch_size=5)) ** -2 - PRIOR**-2) / len(x)
    assert ((got - want).abs() <= 5 * error + 1e-9).all()
    assert (got > 0).any()


def test_the_scales_follow_the_formula():
    x, y = regression()
    scale = {
        name: scale_of(fit(linear(), data, method, likelihood=Gaussian(noise)))
        for name, data, method, noise in (
            ("usual", (x, y), absolute(), NOISE),
            ("less noise", (x, y), absolute(), NOISE / 2),
            ("more data", regression(4), absolute(), NOISE),
            ("larger inputs", regression(1, 2.0), absolute(), NOISE),
            ("narrower prior", (x, y), absolute(prior_scale=0.1), NOISE),
            ("half the factor", (x, y), absolute(factor=0.5), NOISE),
        )
    }
    for name, each in scale.items():
        assert (each < scale["usual"]).all() or name == "usual"
    torch.testing.assert_close(scale["half the factor"], scale["usual"] / 2)
    assert (scale["narrower prior"] < 0.1).all()


def test_fewer_examples_make_the_information_noisier_not_smaller():
    x, y = regression(32)
    whole, few = (
        scale_of(
            fit(
                linear(),
                (x, y),
                absolute(examples=examples, labels=2048 // examples),
                likelihood=Gaussian(NOISE),
            )
        )
        for examples in (256, 8)
    )
    torch.testing.assert_close(few, whole, rtol=0.15, atol=0)


def test_no_more_examples_are_used_than_asked_for():
    run = DiagonalLaplace(factor=1.0, examples=20).start(NETS["mlp"].problem())
    data = NETS["mlp"].data(16)
    logs = [run.step(data.inputs, data.target) for _ in range(2)]
    assert run.seen == 20
    squares = copy.deepcopy(run.squares)
    logs.append(run.step(data.inputs, data.target))
    assert run.seen == 20
    assert logs[2] == logs[1]
    assert all(torch.equal(each, squares[name]) for name, each in run.squares.items())


def test_before_the_first_example_it_is_as_wide_as_the_prior():
    problem = NETS["mlp"].problem()
    posterior = DiagonalLaplace(factor=0.5, prior_scale=0.3).start(problem).posterior()
    for name, each in posterior.q.scale.items():
        rms = problem.model.get_parameter(name).square().mean().sqrt()
        torch.testing.assert_close(each, (0.15 * rms).expand_as(each))


def test_the_means_are_the_trained_network_and_the_scales_are_what_is_learnt():
    net, data = NETS["cnn"], NETS["cnn"].data()
    trained = fit(net.model(), data, MAP(epochs=2), seed=4)
    posterior = fit(net.model(), data, DiagonalLaplace(MAP(epochs=2), factor=1.0), seed=4)
    assert posterior.q.names == list(weights_of(net.model()))
    for name, each in posterior.q.loc.named().items():
        assert torch.equal(each, trained.point()[name])
    assert torch.equal(posterior.model[1].running_mean, trained.point()["1.running_mean"])
    assert posterior.trainable_parameters == sum(
        len(each.view(-1)) for each in net.model().parameters()
    )
    phases = [entry["phase"] for entry in posterior.record.history]
    assert phases == ["MAP"] * 2 + ["DiagonalLaplace"]


def test_chosen_weights_alone_are_random():
    net, data = NETS["transformer"], NETS["transformer"].data()
    posterior = fit(net.model(), data, DiagonalLaplace(None, where=first_layer, factor=1.0))
    assert posterior.q.names == ["embed.weight", "embed.bias"]


@pytest.mark.parametrize("net", ["mlp", "cnn", "transformer", "lstm", "mapping"])
def test_the_chosen_factor_is_never_worse_on_the_held_out_examples(net):
    data, held_out = NETS[net].data(), NETS[net].data(64, seed=7)
    model = NETS[net].model()
    plain, chosen, scaled = (
        fit(model, data, DiagonalLaplace(MAP(epochs=3), **how), validation=held_out)
        for how in ({"factor": 1.0}, {}, {"factor": 2**-0.5})
    )
    assert nll(chosen, held_out) <= nll(plain, held_out) + 1e-6
    assert nll(chosen, held_out) <= nll(scaled, held_out) + 1e-6
    ratio = scale_of(chosen) / scale_of(plain)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)
    halves = 2 * math.log2(ratio.mean().item())
    assert halves == pytest.approx(round(halves), abs=1e-2)


def test_without_a_factor_and_without_held_out_examples_it_says_so_before_training():
    x = torch.randn(20, 4)

    class Never:
        def on_phase_start(self, *_) -> None:
            raise AssertionError("training has begun")

    with pytest.raises(OptionError, match=r"pass them, fit\(..., validation=...\), or a number"):
        fit(nn.Linear(4, 3), (x, torch.arange(20) % 3), DiagonalLaplace(), callbacks=[Never()])


def test_a_net_that_asks_for_an_inputs_value_needs_the_loop_and_says_so_before_training():
    class Asks(nn.Module):
        """Its branch is on the inputs alone: weight samples can run at once, examples cannot."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    x = torch.randn(20, 4)
    data = (x, torch.arange(20) % 3)
    method = DiagonalLaplace(MAP(epochs=1), factor=1.0)
    with pytest.raises(UnsupportedModelError, match=r"all examples at once.*`vectorize=False`"):
        fit(Asks(), data, method)
    for model in (Asks(), BranchingNet()):
        assert fit(model, data, method, vectorize=False).record.history[-1]["epoch"] == 0


def test_the_loop_gives_what_all_at_once_gives():
    net = NETS["cnn"]
    at_once, loop = (fit(net.model(), net.data(), PLAIN, vectorize=each) for each in (True, False))
    torch.testing.assert_close(scale_of(at_once), scale_of(loop), rtol=1e-4, atol=0)


def test_a_network_that_is_no_longer_finite_is_told():
    problem = NETS["mlp"].problem()
    run = DiagonalLaplace(factor=1.0).start(problem)
    x = torch.full((4, 4), math.inf)
    with pytest.raises(DivergenceError, match="a gradient of the trained network is not finite"):
        run.step(x, torch.zeros(4).long())


@pytest.mark.parametrize(
    "options",
    [{"examples": 0}, {"labels": 0}, {"prior_scale": 0.0}, {"factor": 0.0}, {"num_samples": 0}],
)
def test_senseless_options_are_refused(options):
    with pytest.raises(OptionError, match="DiagonalLaplace"):
        DiagonalLaplace(**options)


def test_a_likelihood_of_the_users_is_read_as_it_is():
    x, y = regression()
    data, likelihood = (x.float(), y.float()), Gaussian("learnt")
    model = nn.Linear(4, 1)
    wide = scale_of(fit(model, data, PLAIN, likelihood=likelihood))
    with torch.no_grad():
        likelihood.log_scale.fill_(-2.0)
    assert (scale_of(fit(model, data, PLAIN, likelihood=likelihood)) < wide).all()
    assert isinstance(
        fit(nn.Linear(4, 3), (data[0], torch.arange(8) % 3), PLAIN).likelihood, Categorical
    )
