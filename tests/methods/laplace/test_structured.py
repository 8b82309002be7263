import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify import MAP, WeightPosterior, all_weights, fit, last_layer, matching
from bayesify.core.errors import (
    DivergenceError,
    OptionError,
    UnsupportedLayerError,
    UnsupportedModelError,
)
from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.dense_normal import DenseNormal
from bayesify.distributions.kronecker_normal import KroneckerNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.likelihoods import Bernoulli, Categorical, Gaussian
from bayesify.methods.laplace import curvature as laplace_torch
from bayesify.methods.laplace.structured import Laplace, LaplaceRun
from bayesify.training.data import TrainingData
from bayesify.training.problem import Problem
from bayesify.weights.named import weights_of
from zoo import NETS

STRUCTURES = ["full", "kron", "diag"]
EVIDENCE = 19.62469602894685  # of the problem below, by dense algebra


def laplace(**changes) -> Laplace:
    """Averages samples: the distribution is looked at, not the rule that damps."""
    given = {"pretrain": None, "prior_precision": 2.0, "average": "samples"}
    return Laplace(**(given | changes))


def regression() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model at the mean of its exact posterior, with noise 0.1 and prior precision 2."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    x = torch.randn(50, 5, dtype=torch.float64)
    y = x @ torch.randn(5, 1, dtype=torch.float64)
    y += 0.1 * torch.randn(50, 1, dtype=torch.float64)
    torch.set_rng_state(state)
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(100 * x.T @ x + 2 * torch.eye(5), 100 * x.T @ y).T)
    return model, x, y


def problem_of(model, x, y, likelihood=None, **numbers) -> Problem:
    given = {
        "model": model,
        "likelihood": likelihood or Categorical(),
        "data": TrainingData.of(lambda: iter([(x, y)]), **({"example": x[:4]} | numbers)),
    }
    return replace(NETS["mlp"].problem(), **given)


def run_of(method: Laplace, model, x, y, likelihood=None, size: int = 16) -> LaplaceRun:
    run = method.start(problem_of(model, x, y, likelihood))
    for part in zip(x.split(size), y.split(size), strict=True):
        run.step(*part)
    run.end_epoch(0)
    return run


def covariance(q: WeightDistribution) -> Tensor:
    """Of all numbers, from the definition of each class."""
    if isinstance(q, DenseNormal):
        return torch.linalg.inv(q.factor @ q.factor.T).detach()
    if isinstance(q, MeanField):
        return torch.cat([each.flatten() for each in q.scale.values()]).square().diag().detach()
    assert isinstance(q, KroneckerNormal)
    blocks = []
    for name, tau in q.prior.named().items():
        vectors, values = q.left.named()[name], q.left_values.named()[name]
        if name in q.right.named():
            vectors = torch.kron(vectors, q.right.named()[name])
            values = torch.kron(values, q.right_values.named()[name])
        blocks.append(vectors @ (values + tau).reciprocal().diag() @ vectors.T)
    return torch.block_diag(*blocks).detach()


def jacobian(model: nn.Module, names: list[str], x: Tensor) -> Tensor:
    """(B, C, P), by reverse mode."""
    weights = {name: each for name, each in weights_of(model).items() if name in names}
    slopes = jacrev(lambda named: functional_call(model, named, (x,)))(weights)
    return torch.cat([each.flatten(2) for each in slopes.values()], 2).detach()


def hessians(logits: Tensor) -> Tensor:
    """Of the cross-entropy in the logits, (B, C, C)."""
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None]


def classes(size: int = 48) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 4, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("size", [50, 16])
@pytest.mark.parametrize("likelihood", [Gaussian(0.1), Gaussian("learnt")])
@pytest.mark.parametrize("structure", ["full", "kron"])
def test_linear_regression_is_exact(structure, likelihood, size):
    model, x, y = regression()
    if likelihood.log_scale is not None:
        likelihood = likelihood.double()
        with torch.no_grad():
            likelihood.log_scale.fill_(0.1).log_()
    run = run_of(laplace(structure=structure), model, x, y, likelihood, size)
    posterior = run.posterior()
    assert not posterior.tangent  # it is linear
    exact = torch.linalg.inv(x.T @ x / 0.1**2 + 2 * torch.eye(5))
    torch.testing.assert_close(covariance(posterior.q), exact, rtol=1e-10, atol=0)
    assert torch.equal(posterior.q.point()["weight"], model.weight)
    assert run.log_evidence() == pytest.approx(EVIDENCE, rel=1e-12)
    new = torch.randn(7, 5, dtype=torch.float64)
    with torch.no_grad():
        out = posterior.outputs(new, num_samples=20_000)[..., 0]
    variance = ((new @ exact) * new).sum(1)
    assert ((out.mean(0) - (new @ model.weight.T)[:, 0]).abs() < 5 * (variance / 2e4).sqrt()).all()
    assert (out.var(0) / variance - 1).abs().max() < 5 * (2 / 20_000) ** 0.5


def test_the_diagonal_of_linear_regression():
    model, x, y = regression()
    run = run_of(laplace(structure="diag"), model, x, y, Gaussian(0.1))
    precision = 100 * x.square().sum(0) + 2
    scale = run.posterior().q.scale["weight"][0].detach()
    torch.testing.assert_close(scale, precision.rsqrt(), rtol=1e-10, atol=0)
    assert run.log_evidence() == pytest.approx(19.46678, abs=1e-5)


def test_several_outputs_share_the_noise():
    model, x = nn.Linear(5, 2).double(), torch.randn(20, 5, dtype=torch.float64)
    run = run_of(laplace(structure="full"), model, x, torch.randn(20, 2).double(), Gaussian(0.5))
    slopes = jacobian(model, run.names, x)
    precision = torch.einsum("bcp,bcq->pq", slopes, slopes) / 0.25 + 2 * torch.eye(12)
    got = torch.linalg.inv(covariance(run.posterior().q))
    torch.testing.assert_close(got, precision, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_last_layer_has_the_curvature_of_logistic_regression(structure):
    model, (x, y) = smooth(), classes()
    q = run_of(laplace(structure=structure), model, x, y).posterior().q
    features = model[:2](x).detach()
    middle = hessians(model(x).detach())  # (B, 3, 3)
    weight = torch.einsum("bck,bi,bj->cikj", middle, features, features).reshape(18, 18)
    cross = torch.einsum("bck,bi->cik", middle, features).reshape(18, 3)
    dense = torch.cat([torch.cat([weight, cross], 1), torch.cat([cross.T, middle.sum(0)], 1)])
    if structure == "diag":
        dense = dense.diag().diag()
    if structure == "kron":
        mean = features.T @ features / len(x)
        dense = torch.block_diag(torch.kron(middle.sum(0), mean), middle.sum(0))
    precision = dense + 2 * torch.eye(21)
    got = torch.linalg.inv(covariance(q))
    torch.testing.assert_close(got, precision, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("structure", ["full", "diag"])
def test_all_layers_have_the_gauss_newton_matrix(structure):
    model, (x, y) = smooth(), classes()
    posterior = run_of(laplace(where=all_weights, structure=structure), model, x, y).posterior()
    assert seen(posterior) == (True, "samples")
    slopes = jacobian(model, posterior.q.names, x)
    dense = torch.einsum("bcp,bck,bkq->pq", slopes, hessians(model(x).detach()), slopes)
    want = (dense if structure == "full" else dense.diag().diag()) + 2 * torch.eye(51)
    got = torch.linalg.inv(covariance(posterior.q))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_classes_at_every_position_are_examples_that_share_their_inputs(structure):
    """A 1x1 convolution is a linear layer on all pixels at once; Kronecker factors are of their
    mean input and the sum over them."""
    model, linear = nn.Conv2d(4, 3, 1).double(), nn.Linear(4, 3).double()
    linear.weight.data, linear.bias.data = model.weight.data.flatten(1), model.bias.data
    x = torch.randn(10, 4, 2, 3, dtype=torch.float64)
    y = torch.randint(3, (10, 2, 3))
    pixels, labels = x.movedim(1, -1).flatten(0, -2), y.flatten()
    runs = [
        run_of(laplace(structure=structure), *each, size=size)
        for each, size in (((model, x, y), 4), ((linear, pixels, labels), 24))
    ]
    got, want = (covariance(each.posterior().q) for each in runs)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert runs[0].log_evidence() == pytest.approx(runs[1].log_evidence(), rel=1e-9)


def test_batches_that_are_left_out_are_made_up_for():
    model, (x, y) = smooth(), classes()
    for structure in STRUCTURES:
        half, twice = (
            laplace(structure=structure).start(problem_of(model, x, y, num_data=48))
            for _ in range(2)
        )
        half.step(x[:24], y[:24])
        twice.step(torch.cat([x[:24], x[:24]]), torch.cat([y[:24], y[:24]]))
        got, want = (covariance(each.posterior().q) for each in (half, twice))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        assert half.log_evidence() == pytest.approx(twice.log_evidence(), rel=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_prior_precision_is_where_the_evidence_is_highest(structure):
    model, (x, y) = smooth(), classes()
    run = run_of(laplace(structure=structure, prior_precision=None), model, x, y)
    found = run.curvature.la.prior_precision.item()
    assert abs(found - 1) > 0.05  # it has moved from where it starts
    at = [
        run_of(laplace(structure=structure, prior_precision=c * found), model, x, y).log_evidence()
        for c in (0.9, 1.0, 1.1)
    ]
    assert at[1] == pytest.approx(run.log_evidence(), rel=1e-6)
    assert at[1] > max(at[0], at[2])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_validation_examples_decide_how_wide_the_noise_is(structure, generator):
    x = torch.randn(90, 3, generator=generator)
    y = (x.sum(1) + 0.3 * torch.randn(90, generator=generator) > 0).long()
    net = fitted_map(nn.Linear(3, 2), x[:60], y[:60])
    evidence, scaled, given = (
        fit(net, (x[:60], y[:60]), method, validation=(x[60:], y[60:]))
        for method in (
            Laplace(pretrain=None, structure=structure, rescale=False),
            Laplace(pretrain=None, structure=structure),
            laplace(structure=structure),
        )
    )
    ratio = scaled.q.scale["weight"] / evidence.q.scale["weight"]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    assert ratio[0, 0] < 0.9
    wide, narrow = (
        bayesify.evaluate(each, (x[60:], y[60:]), num_samples=10).metrics["nll"]  # as it was chosen
        for each in (evidence, scaled)
    )
    assert narrow < wide
    alone = fit(net, (x[:60], y[:60]), laplace(structure=structure))
    assert given.q.scale["weight"].equal(alone.q.scale["weight"])  # the user's precision stays


def fitted_map(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    net.load_state_dict(fit(net, (x, y), MAP(epochs=30, lr=0.05)).point())
    return net


def test_the_evidence_is_that_of_dense_algebra():
    model, (x, y) = smooth(), classes()
    run = run_of(laplace(where=all_weights, structure="full"), model, x, y)
    w = torch.cat([each.flatten() for each in weights_of(model).values()])
    fit_ = -nn.functional.cross_entropy(model(x), y, reduction="sum").item()
    precision = torch.linalg.inv(covariance(run.posterior().q))
    ratio = precision.logdet() - 51 * math.log(2)
    want = fit_ - 0.5 * (ratio + 2 * w @ w).item()
    assert run.log_evidence() == pytest.approx(want, rel=1e-9)


def test_each_tensor_can_have_a_prior_of_its_own():
    model, (x, y) = smooth(), classes()
    method = laplace(prior_precision=None, prior_structure="layerwise", where=all_weights)
    q = run_of(method, model, x, y).posterior().q
    assert len({each.item() for each in q.prior.named().values()}) == 4
    assert all(each.requires_grad for each in q.prior.parameters())
    q = run_of(laplace(where=all_weights), model, x, y).posterior().q
    assert {each.item() for each in q.prior.named().values()} == {2.0}
    assert not any(each.requires_grad for each in q.prior.parameters())


def seen(posterior: WeightPosterior) -> tuple[bool, str]:
    return posterior.tangent, posterior.average


def test_what_is_linear_is_sampled_and_what_is_not_is_linearised():
    squashed = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
    x, y = classes()
    assert seen(fit(smooth(), (x, y), laplace())) == (False, "samples")
    assert seen(fit(squashed, (x, y), laplace())) == (True, "samples")
    assert seen(fit(smooth(), (x, y), laplace(where=all_weights))) == (True, "samples")
    first = laplace(where=matching("0.*"))
    assert seen(fit(smooth(), (x, y), first)) == (True, "samples")
    sampled = laplace(where=all_weights, predictive="sampled")
    assert seen(fit(smooth(), (x, y), sampled)) == (False, "samples")


def test_classes_are_damped_by_default_and_numbers_are_not():
    x, y = classes()
    default = Laplace(pretrain=None, prior_precision=2.0)
    everywhere = replace(default, where=all_weights)
    assert seen(fit(smooth(), (x, y), default)) == (False, "probit")
    assert seen(fit(smooth(), (x, y), everywhere)) == (True, "probit")
    target = torch.randn(len(x), 3, dtype=torch.float64)
    noise = Gaussian(1.0)
    assert seen(fit(smooth(), (x, target), default, likelihood=noise)) == (False, "samples")
    assert seen(fit(smooth(), (x, target), everywhere, likelihood=noise)) == (True, "samples")


@pytest.mark.parametrize("where", [last_layer, all_weights])
def test_damped_classes_have_the_mutual_information_of_the_samples(where):
    model, data, x = smooth(), classes(), torch.randn(5, 4, dtype=torch.float64)
    damping, sampled = (
        fit(model, data, Laplace(pretrain=None, prior_precision=2.0, where=where, average=each))
        for each in ("probit", "samples")
    )
    assert damping.outputs(x).shape == (32, 5, 3)
    one, other = damping.predict(x), sampled.predict(x)
    assert (one.mutual_information() > 0.01).all()
    assert torch.equal(one.mutual_information(), other.mutual_information())
    assert not torch.allclose(one.probs, other.probs, atol=1e-3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_linearised_posterior_comes_back_from_its_folder(structure, tmp_path):
    method = laplace(where=all_weights, structure=structure)
    posterior = fit(smooth(), classes(), method)
    again = bayesify.load(bayesify.save(posterior, tmp_path / "saved"), smooth())
    x = torch.randn(5, 4, dtype=torch.float64)
    assert seen(again) == seen(posterior) == (True, "samples")
    assert torch.equal(again.outputs(x), posterior.outputs(x))
    assert again.stored_parameters == posterior.stored_parameters


@pytest.mark.parametrize(
    ("net", "structure"),
    [
        *(("cnn", "diag"), ("transformer", "diag"), ("tied", "full"), ("mapping", "diag")),
        *(("tuple", "kron"), ("mlp", "kron")),
    ],
)
def test_all_weights_of_any_network_can_be_random(net, structure):
    method = laplace(where=all_weights, structure=structure)
    posterior = fit(NETS[net].model(), NETS[net].data(), method, batch_size=16)
    assert seen(posterior) == (True, "samples")
    out = posterior.outputs(NETS[net].inputs(5), num_samples=4)
    assert torch.isfinite(out).all()
    assert set(posterior.q.names) == set(weights_of(posterior.model))


def test_kronecker_factors_of_a_convolution_are_those_of_its_patches():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3)).double()
    x, y = torch.randn(12, 1, 3, 3, dtype=torch.float64), torch.randint(3, (12,))
    q = run_of(laplace(where=all_weights), model, x, y, size=5).posterior().q
    patches = nn.functional.unfold(x, 2).mT.flatten(0, 1)  # (B * 4, 4)
    root = torch.linalg.cholesky_ex(hessians(model(x).detach()) + 1e-14 * torch.eye(3))[0]
    slopes = model[2].weight.detach().view(3, 2, 4)  # of the logits in the convolution's outputs
    push = torch.einsum("bck,cop->bkpo", root, slopes).flatten(0, 2)
    dense = torch.kron(push.T @ push, patches.T @ patches / len(patches))
    got = torch.linalg.inv(covariance(q))[:8, :8]
    torch.testing.assert_close(got, dense + 2 * torch.eye(8), rtol=1e-6, atol=1e-6)


class Shared(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(x).tanh()).tanh())


@pytest.mark.parametrize(
    ("net", "named"),
    [
        ("cnn", r"`0.weight` is of|`1.weight` is of `1` \(BatchNorm2d\)"),
        ("transformer", r"`encoder.layers.0.self_attn` \(MultiheadAttention\)"),
        ("mapping", r"`embed.weight` is of `embed` \(Embedding\)"),
        ("tied", r"`embed.weight` is of `embed` \(Embedding\)"),
        ("lstm", r"`lstm.weight_ih_l0` is of `lstm` \(LSTM\)"),
    ],
)
def test_layers_without_kronecker_factors_are_named_before_any_training(net, named):
    method = Laplace(MAP(epochs=10**6), where=all_weights)
    with pytest.raises(UnsupportedLayerError, match=named) as caught:
        fit(NETS[net].model(), NETS[net].data(), method)
    assert "where=bayesify.last_layer) or take structure='diag'" in str(caught.value)


def test_kronecker_factors_need_whole_layers_that_run_once():
    data = NETS["mlp"].data()
    with pytest.raises(UnsupportedLayerError, match=r"0.bias of `0` \(Linear\) is not random"):
        fit(NETS["mlp"].model(), data, laplace(where=matching("0.weight")))
    with pytest.raises(UnsupportedLayerError, match=r"layer of `layer.weight` is called 2 times"):
        fit(Shared(), data, laplace(where=all_weights))
    mirrored = nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect")
    pixels = torch.randn(8, 1, 4, 4), torch.randint(3, (8, 4, 4))
    with pytest.raises(UnsupportedLayerError, match="padding_mode='reflect'"):
        fit(mirrored, pixels, laplace())
    tied = NETS["mlp"].model()
    tied[2].weight = nn.Parameter(torch.randn(8, 8))
    tied.insert(3, nn.Linear(8, 8, bias=False))
    tied[3].weight = tied[2].weight
    with pytest.raises(UnsupportedLayerError, match=r"names 2.weight, 3.weight"):
        fit(tied, data, laplace(where=all_weights))
    tokens = torch.randn(8, 2, 4), torch.randint(2, (8, 4))
    attention = nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)
    with pytest.raises(UnsupportedLayerError, match=r"`self_attn.out_proj.weight` is called 0"):
        fit(attention, tokens, laplace(where=matching("self_attn.out_proj.*")))


@pytest.mark.parametrize(
    ("likelihood", "outputs", "target"),
    [
        (Gaussian("output"), 4, torch.randn(32, 2)),
        (Bernoulli(), 3, torch.randint(2, (32, 3))),
    ],
)
def test_a_likelihood_without_a_form_is_refused_before_any_training(likelihood, outputs, target):
    with pytest.raises(UnsupportedModelError, match="has no form for the likelihood"):
        fit(
            nn.Linear(4, outputs),
            (torch.randn(32, 4), target),
            Laplace(MAP(epochs=10**6)),
            likelihood=likelihood,
        )


def test_a_matrix_over_too_many_weights_is_refused():
    model = nn.Linear(4, 5000)
    with pytest.raises(UnsupportedModelError, match=r"5 GiB for these 25000 .*structure='kron'"):
        fit(model, (torch.randn(8, 4), torch.arange(8)), Laplace(structure="full"))


@pytest.mark.parametrize("how", [None, SimpleNamespace()])
def test_without_the_library_it_says_what_to_install_before_any_training(monkeypatch, how):
    for name in [each for each in sys.modules if each.partition(".")[0] == "laplace"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "laplace", how)
    with pytest.raises(OptionError, match=r"`pip install bayesify\[laplace\]`"):
        fit(NETS["mlp"].model(), NETS["mlp"].data(), Laplace(MAP(epochs=10**6)))


def test_senseless_choices_are_refused():
    with pytest.raises(OptionError, match="where='last_layer': expected a selector"):
        laplace(where="last_layer").start(NETS["mlp"].problem())
    with pytest.raises(OptionError, match="chose no weight of Sequential"):
        laplace(where=lambda model, example: []).start(NETS["mlp"].problem())
    for options in ({"structure": "kfac"}, {"prior_precision": 0.0}, {"predictive": "glm"}):
        with pytest.raises(OptionError, match="Laplace"):
            laplace(**options)


def test_all_layers_of_a_recurrent_net_can_be_sampled_but_not_linearised():
    model, data = NETS["lstm"].model(), NETS["lstm"].data()
    method = Laplace(MAP(epochs=10**6), where=all_weights, structure="diag")
    with pytest.raises(UnsupportedModelError, match=r"LSTMNet cannot .*predictive='sampled'"):
        fit(model, data, method)
    posterior = fit(model, data, replace(method, pretrain=None, predictive="sampled"))
    assert set(posterior.q.names) == set(weights_of(model))


def test_numbers_that_are_not_finite_are_told():
    model, (x, y) = smooth(), classes()
    run = laplace().start(problem_of(model, x, y))
    with pytest.raises(DivergenceError, match=r"is not finite|is nan"):
        run.step(torch.full_like(x, torch.nan), y)


def test_the_network_is_frozen_behind_it_and_keeps_its_weights():
    model, data = NETS["mlp"].model(), NETS["mlp"].data()
    posterior = fit(model, data, laplace())
    for name, each in weights_of(model).items():
        assert torch.equal(weights_of(posterior.model)[name], each)
    assert not any(each.requires_grad for each in posterior.model.parameters())
    assert not any(module._forward_hooks for module in posterior.model.modules())


def loaders() -> Iterator[tuple[str, nn.Module, Tensor, Tensor, object]]:
    x, y = classes()
    yield "classification", smooth(), x, y, Categorical()
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    yield "regression", model, x, torch.randn(48, 2, dtype=torch.float64), Gaussian(0.3)


@pytest.mark.peers
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("where", "subset"), [(last_layer, "last_layer"), (all_weights, "all")])
@pytest.mark.filterwarnings("ignore:By default `link_approx`")
def test_it_agrees_with_laplace_torch(structure, where, subset):
    peer = laplace_torch.library()
    for task, model, x, y, likelihood in loaders():
        noise = {"sigma_noise": 0.3} if task == "regression" else {}
        la = peer.Laplace(model, task, subset, structure, **noise)
        la.fit(DataLoader(TensorDataset(x, y), batch_size=48))
        la.optimize_prior_precision(method="marglik")
        method = laplace(where=where, structure=structure, prior_precision=None)
        run = run_of(method, model, x, y, likelihood, size=48)
        q = run.posterior().q
        tau = run.curvature.la.prior_precision
        torch.testing.assert_close(tau, la.prior_precision, rtol=1e-6, atol=0)
        assert run.log_evidence() == pytest.approx(la.log_marginal_likelihood().item(), rel=1e-8)
        new = torch.randn(6, 4, dtype=torch.float64)
        mean, variance = la._glm_predictive_distribution(new)
        slopes = jacobian(model, q.names, new)
        got = torch.einsum("bcp,pq,bkq->bck", slopes, covariance(q), slopes)
        torch.testing.assert_close(got, variance, rtol=1e-6, atol=1e-9)
        with torch.no_grad():
            out = run.posterior().outputs(new, num_samples=3000)
        error = (variance.diagonal(dim1=1, dim2=2) / 3000).sqrt()
        assert ((out.mean(0) - mean).abs() < 5 * error).all()
        spread = out.var(0) / variance.diagonal(dim1=1, dim2=2)
        assert (spread - 1).abs().max() < 6 * (2 / 3000) ** 0.5
        if task == "classification":
            rule = replace(method, average="probit")
            probs = run_of(rule, model, x, y, likelihood, size=48).posterior()
            got = probs.predict(new, num_samples=3000).probs
            want = la(new, pred_type="glm", link_approx="probit")
            torch.testing.assert_close(got, want, rtol=0, atol=0.01)  # 3 % of each variance
