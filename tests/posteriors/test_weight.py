import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils.flop_counter import FlopCounterMode

import bayesify
from bayesify import (
    BALI,
    MAP,
    STF,
    Bernoulli,
    Ensemble,
    MeanField,
    MeanFieldVI,
    RegressionPredictive,
    WeightPosterior,
    first_layer,
    fit,
    last_layer,
    rescaled,
)
from bayesify.core.batches import rows
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.modes import attention_for_vmap
from bayesify.core.types import Inputs, Named
from bayesify.distributions.dense_normal import DenseNormal
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.particles import Particles
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import Categorical, Gaussian
from bayesify.numerics.probit import damped
from bayesify.posteriors.scale import times
from bayesify.tracing.trace import call_arguments
from bayesify.weights.named import copied, weights_of
from bayesify.weights.structured import StructuredWeight
from zoo import NETS


@pytest.fixture
def posterior() -> WeightPosterior:
    net = NETS["cnn"].model()
    return WeightPosterior(net, MeanField.around(net, where=first_layer, scale=0.2), Categorical())


X = NETS["cnn"].inputs(6)


def test_it_predicts_the_mean_of_the_samples_probabilities(posterior):
    raw = posterior.outputs(X, num_samples=7)
    torch.testing.assert_close(posterior.predict(X, num_samples=7).probs, raw.softmax(2).mean(0))


def test_the_same_samples_serve_every_call(posterior):
    assert torch.equal(posterior.outputs(X), posterior.outputs(X))
    torch.testing.assert_close(posterior.outputs(X[2:4]), posterior.outputs(X)[:, 2:4])


def test_the_model_is_called_in_eval_mode_and_left_in_its_own(posterior):
    posterior.model.train()
    held = posterior.model[1].running_mean.clone()
    posterior.predict(X)
    assert posterior.model.training
    assert torch.equal(posterior.model[1].running_mean, held)


def test_outputs_are_differentiable_in_the_inputs_and_predictions_are_not(posterior):
    x = X.clone().requires_grad_()
    posterior.outputs(x, num_samples=3).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not posterior.predict(x).logits.requires_grad


@pytest.mark.parametrize("name", ["num_samples", "chunk_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_are_at_least_one(posterior, name, value):
    for call in (posterior.predict, posterior.outputs):
        with pytest.raises(OptionError, match=rf"{name}={value}: expected at least 1"):
            call(X, **{name: value})


def test_the_counts_of_numbers(posterior):
    first = posterior.model[0].weight.numel()
    total = sum(each.numel() for each in posterior.model.parameters())
    statistics = 4 + 4 + 1
    assert posterior.trainable_parameters == 2 * first
    assert posterior.stored_parameters == 2 * first + (total - first) + statistics
    assert "0.weight" not in posterior.base()
    assert set(posterior.base()) | {"0.weight"} == set(posterior.model.state_dict())


def test_a_learnt_noise_counts():
    net = nn.Linear(3, 1)
    posterior = WeightPosterior(net, MeanField.around(net), Gaussian("learnt"))
    assert posterior.trainable_parameters == 9
    assert posterior.stored_parameters == 9


def test_types_decide_whether_samples_run_at_once_unless_told():
    net = NETS["lstm"].model()
    q = MeanField.around(net)
    assert not WeightPosterior(net, q, Categorical()).vectorize
    assert WeightPosterior(net, q, Categorical(), vectorize=True).vectorize


def test_it_says_what_it_is(posterior):
    said = "WeightPosterior(Sequential, MeanField over 1 tensors, Categorical, samples at once)"
    assert repr(posterior) == said


def test_inputs_of_another_size_are_measured_anew():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wide = WeightPosterior(net, MeanField.around(net), Categorical())
    sizes = [wide._chunk_size(torch.zeros(2, 1, side, side), 100) for side in (8, 64, 8)]
    assert sizes[0] == sizes[2] > sizes[1]


def test_a_posterior_goes_on_from_its_point():
    data = NETS["mlp"].data()
    posterior = fit(NETS["mlp"].model(), data, STF(pretrain=MAP(epochs=1), epochs=1))
    assert list(posterior.point()) == posterior.q.names


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("vectorize", [True, False])
def test_samples_in_chunks_compute_once_what_they_have_in_common(vectorize):
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    q = MeanField.around(net, where=last_layer, scale=0.1)
    posterior = WeightPosterior(net, q, Categorical(), vectorize=vectorize)
    x, trunk, head = torch.randn(16, 8), 2 * 16 * (8 + 64) * 64, 2 * 16 * 64 * 2
    posterior.predict(x, num_samples=6, chunk_size=2)  # finds the trunk
    count = flops(lambda: posterior.predict(x, num_samples=6, chunk_size=2))
    assert count == trunk + 6 * head
    with torch.no_grad():
        at_once = WeightPosterior(net, q, Categorical()).outputs(x, num_samples=6, chunk_size=6)
        chunks = posterior.outputs(x, num_samples=6, chunk_size=2)
    torch.testing.assert_close(chunks, at_once)


def test_whoever_differentiates_gets_the_whole_graph_in_chunks_too():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    posterior = WeightPosterior(net, MeanField.around(net, where=last_layer), Categorical())
    slopes = []
    for chunk_size in (1, 5):
        x = torch.ones(3, 4, requires_grad=True)
        posterior.outputs(x, num_samples=5, chunk_size=chunk_size).square().sum().backward()
        slopes.append(x.grad)
    assert slopes[0].abs().sum() > 0
    torch.testing.assert_close(*slopes)


def test_one_more_sample_costs_numbers_only_where_there_are_members():
    net, (x, y) = nn.Linear(4, 3), (torch.randn(30, 4), torch.arange(30) % 3)
    three = fit(net, (x, y), Ensemble(members=3, epochs=1))
    assert three.member_parameters == 15
    gaussian = fit(net, (x, y), MeanFieldVI(pretrain=None, epochs=1))
    assert gaussian.member_parameters == 0


SMOOTH = [name for name, net in NETS.items() if net.vectorizes]


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def doubled(inputs: Inputs) -> Inputs:
    return torch.utils._pytree.tree_map(
        lambda each: each.double() if each.is_floating_point() else each, inputs
    )


def case(net: str) -> tuple[nn.Module, Inputs]:
    return NETS[net].model().double().eval(), doubled(NETS[net].inputs(5))


def tangent(model: nn.Module, inputs: Inputs, center: Named | None = None) -> tuple[Tensor, Named]:
    """Outputs, and their Jacobians by weight name, (B, C, *shape), by reverse mode."""
    args, kwargs = call_arguments(inputs)

    def at(weights: Named) -> Tensor:
        return read_tensor(functional_call(model, weights, args, kwargs))

    weights = copied(weights_of(model) | (center or {}))
    with attention_for_vmap():
        return at(weights).detach(), {n: each.detach() for n, each in jacrev(at)(weights).items()}


def by_hand(posterior: WeightPosterior, inputs: Inputs, n: int) -> Tensor:
    """f + J (w - w*), sample by sample, of the draws that the generator gives."""
    center, out = posterior.q.point(), []
    value, slopes = tangent(posterior.model, inputs, center)
    draws = posterior.q.sample(n, generator=seeded())
    for i in range(posterior.q.size(n)):
        one = posterior.q.weights(torch.utils._pytree.tree_map(lambda each, i=i: each[i], draws))
        plain = {k: e.dense() if isinstance(e, StructuredWeight) else e for k, e in one.items()}
        change = torch.zeros_like(value)
        for name, each in plain.items():
            shift = (each - center[name]).detach()
            change += (slopes[name] * shift).flatten(2).sum(2)
        out.append(value + change)
    return torch.stack(out)


@pytest.mark.parametrize("how", [{}, {"chunk_size": 2}, {"vectorize": False}])
@pytest.mark.parametrize("net", SMOOTH)
def test_samples_are_the_tangent_at_the_drawn_weights(net, how):
    model, x = case(net)
    q = MeanField.around(model, scale=0.7)
    vectorize = how.get("vectorize", True)
    posterior = WeightPosterior(model, q, Categorical(), vectorize=vectorize, tangent=True)
    with torch.no_grad():
        got = posterior.outputs(
            x, num_samples=5, generator=seeded(), chunk_size=how.get("chunk_size", 5)
        )
        sampled = WeightPosterior(model, q, Categorical()).outputs(x, num_samples=5)
    torch.testing.assert_close(got, by_hand(posterior, x, 5), rtol=1e-9, atol=1e-9)
    assert (got - sampled).abs().max() > 0.1  # the networks themselves are elsewhere


class Steps(Particles):
    """Settings of the weights around one network."""

    @property
    def networks(self) -> int:
        return 1


def test_pushing_each_basis_vector_through_gives_the_jacobian():
    model, x = case("mlp")
    center = weights_of(model)
    size = sum(each.numel() for each in center.values())
    steps = torch.cat([torch.eye(size), -torch.eye(size)]).double()  # their mean is the center
    pieces = steps.split([each.numel() for each in center.values()], 1)
    members = {
        name: each + piece.view(-1, *each.shape)
        for (name, each), piece in zip(center.items(), pieces, strict=True)
    }
    posterior = WeightPosterior(model, Steps(members, {}), Categorical(), tangent=True)
    value, slopes = tangent(model, x)
    jacobian = torch.cat([each.flatten(2) for each in slopes.values()], 2)  # (B, C, P)
    want = jacobian.movedim(2, 0)
    with torch.no_grad():
        got = posterior.outputs(x) - value
    torch.testing.assert_close(got, torch.cat([want, -want]), rtol=1e-9, atol=1e-9)


def test_outputs_have_the_moments_of_a_gaussian_process():
    model, x = case("mlp")
    loc = weights_of(model)
    size = sum(each.numel() for each in loc.values())
    factor = 3 * torch.eye(size) + torch.randn(size, size, generator=seeded()).tril() / 10
    q = DenseNormal(loc, factor)
    value, slopes = tangent(model, x)
    jacobian = torch.cat([each.flatten(2) for each in slopes.values()], 2)
    want = torch.einsum("bcp,pq,bkq->bck", jacobian, q.covariance.detach(), jacobian)
    with torch.no_grad():
        out = WeightPosterior(model, q, Categorical(), tangent=True).outputs(x, num_samples=4000)
    error = (want.diagonal(dim1=1, dim2=2) / 4000).sqrt()
    assert ((out.mean(0) - value).abs() < 5 * error).all()
    centred = out - value
    got = torch.einsum("sbc,sbk->bck", centred, centred) / 4000
    variance = want.diagonal(dim1=1, dim2=2)
    wide = (variance[:, :, None] * variance[:, None] + want.square()).sqrt() / 4000**0.5
    assert ((got - want).abs() < 5 * wide).all()


@pytest.mark.parametrize("build", [MeanField.around, LowRankParticles.around])
def test_any_distribution_over_weights_will_do(build):
    model, x = case("mlp")
    how = {"scale": 0.5} if build == MeanField.around else {"members": 3, "rank": 2, "scale": 0.5}
    q = build(model, **how)
    with torch.no_grad():
        for each in q.parameters():
            each.add_(0.3 * torch.randn(each.shape, generator=seeded()))
        posterior = WeightPosterior(model, q, Categorical(), tangent=True)
        got = posterior.outputs(x, num_samples=3, generator=seeded())
    torch.testing.assert_close(got, by_hand(posterior, x, 3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("vectorize", [True, False])
def test_it_is_differentiable_in_the_inputs(vectorize):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    q = MeanField.around(model, scale=0.5)
    posterior = WeightPosterior(model, q, Categorical(), vectorize=vectorize, tangent=True)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: posterior.outputs(each, num_samples=3), x)


def test_the_gradient_reaches_the_distribution():
    model, x = case("mlp")
    posterior = WeightPosterior(
        model, MeanField.around(model, scale=0.5), Categorical(), tangent=True
    )
    posterior.outputs(x, num_samples=3).square().sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in posterior.q.parameters())


def test_a_last_layer_is_linear_already():
    model, x = case("cnn")
    q = MeanField.around(model, where=last_layer, scale=3.0, example=x)
    with torch.no_grad():
        plain, linear = (
            WeightPosterior(model, q, Categorical(), tangent=each).outputs(x, num_samples=4)
            for each in (False, True)
        )
    torch.testing.assert_close(plain, linear)


@pytest.mark.parametrize("net", SMOOTH)
def test_examples_do_not_meet_and_the_model_is_left_alone(net):
    model, x = case(net)
    model.train()
    before = copied(weights_of(model))
    posterior = WeightPosterior(
        model, MeanField.around(model, scale=0.3), Categorical(), tangent=True
    )
    whole = posterior.predict(x, num_samples=6)
    for i in range(5):
        alone = posterior.predict(rows(x, slice(i, i + 1)), num_samples=6)
        torch.testing.assert_close(alone.logits[:, 0], whole.logits[:, i])
    assert all(each.training for each in model.modules())
    assert all(torch.equal(each, before[name]) for name, each in weights_of(model).items())


def test_changing_the_distribution_keeps_it_linear():
    model, x = case("mlp")
    posterior = WeightPosterior(
        model, MeanField.around(model, scale=0.5), Gaussian(1.0), tangent=True
    )
    value = tangent(model, x)[0]
    with torch.no_grad():
        one, three = (times(posterior, each).outputs(x) - value for each in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)  # only of what is linear
    again = copy.deepcopy(posterior)
    assert again.tangent
    assert torch.equal(again.outputs(x), posterior.outputs(x))
    held_out = x, torch.randint(3, (5,))
    wide = WeightPosterior(model, MeanField.around(model, scale=9.0), Categorical(), tangent=True)
    assert rescaled(wide, held_out).tangent


def test_it_comes_back_from_a_folder(tmp_path):
    model, x = case("mlp")
    posterior = WeightPosterior(
        model, MeanField.around(model, scale=0.5), Categorical(), tangent=True
    )
    again = bayesify.load(bayesify.save(posterior, tmp_path / "saved"), case("mlp")[0])
    assert again.tangent
    assert repr(again) == repr(posterior)
    assert torch.equal(again.outputs(x), posterior.outputs(x))
    assert not torch.equal(again.replaced(tangent=False).outputs(x), again.outputs(x))


def test_statistics_of_batch_norm_are_not_linearised():
    q = Particles.of_models([NETS["cnn"].model()])
    with pytest.raises(UnsupportedModelError, match=r"sets the buffers 1.num_batches_tracked, "):
        WeightPosterior(NETS["cnn"].model(), q, Categorical(), tangent=True)


def test_a_layer_without_a_derivative_in_forward_mode_is_named():
    model, x = NETS["lstm"].model(), NETS["lstm"].inputs(3)
    posterior = WeightPosterior(
        model, MeanField.around(model, scale=0.1), Categorical(), tangent=True
    )
    with pytest.raises(UnsupportedModelError, match=r"LSTMNet cannot be linearised: .*rnn"):
        posterior.outputs(x)
    head = MeanField.around(model, where=last_layer, scale=0.1, example=x)
    assert WeightPosterior(model, head, Categorical(), tangent=True).outputs(x).shape == (32, 3, 3)


PROBIT = {"average": "probit"}
SEEN = {"probit": PROBIT, "tangent, probit": PROBIT | {"tangent": True}}


def noisy(net: nn.Module, scale: float = 0.7) -> MeanField:
    return MeanField.around(net, scale=scale)


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def test_the_damped_variance_is_that_of_the_outputs_in_closed_form():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    posterior = WeightPosterior(net, noisy(net), Categorical(), **PROBIT)
    got = posterior.predict(x, num_samples=20_000)
    variance = 0.49 * (x.square().sum(1, keepdim=True) + 1)  # of every logit: weights and bias
    expected = net(x).detach() / (1 + math.pi / 8 * variance).sqrt()
    torch.testing.assert_close(got.damped, expected, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(got.probs, expected.softmax(1), rtol=0.01, atol=1e-3)
    assert got.logits.shape == (20_000, 5, 3)


def test_both_averages_of_one_logit_are_near_the_integral():
    """The logit is N(m, v); MacKay's rule is within .02, S samples within their error."""
    torch.manual_seed(0)
    net, x, yes = nn.Linear(4, 1).double(), 2 * torch.randn(5, 4).double(), torch.ones(5, 1)
    m, v = net(x).detach(), 0.49 * (x.square().sum(1, keepdim=True) + 1)
    z = torch.linspace(-8, 8, 4001).double()
    weight = (-z.square() / 2).exp()
    integral = (torch.sigmoid(m + v.sqrt() * z) * weight / weight.sum()).sum(1, keepdim=True)
    sampled = WeightPosterior(net, noisy(net), Bernoulli())
    damping = sampled.replaced(average="probit").predict(x, num_samples=20_000)
    rule = torch.sigmoid(m / (1 + math.pi / 8 * v).sqrt())
    torch.testing.assert_close(damping.probs, rule, rtol=0, atol=5e-3)
    torch.testing.assert_close(damping.probs, integral, rtol=0, atol=0.025)
    samples = sampled.predict(x, num_samples=20_000)
    torch.testing.assert_close(samples.probs, integral, rtol=0, atol=0.01)
    for each in (samples, damping):
        torch.testing.assert_close(each.log_prob(yes), each.probs[:, 0].log())
        torch.testing.assert_close(
            each.entropy(), torch.distributions.Bernoulli(each.probs[:, 0]).entropy()
        )


@pytest.mark.parametrize("likelihood", [Categorical, Bernoulli])
@pytest.mark.parametrize("tangent", [False, True])
def test_outputs_and_mutual_information_are_those_of_the_samples(likelihood, tangent):
    net, x = two_layers(), torch.randn(5, 4)
    damping = WeightPosterior(net, noisy(net), likelihood(), tangent=tangent, **PROBIT)
    sampled = damping.sampled()
    assert (sampled.average, sampled.tangent) == ("samples", tangent)
    assert sampled.sampled() is sampled
    assert damping.outputs(x, num_samples=9).shape == (9, 5, 3)
    assert torch.equal(damping.outputs(x), sampled.outputs(x))
    one, other = damping.predict(x), sampled.predict(x)
    assert torch.equal(one.logits, other.logits)
    assert (one.mutual_information() > 0.01).all()
    for each in ("mutual_information", "aleatoric"):
        assert torch.equal(getattr(one, each)(), getattr(other, each)())
    assert torch.equal(one.summary()["mutual_information"], other.mutual_information())
    assert not torch.allclose(one.probs, other.probs, atol=1e-3)


@pytest.mark.parametrize("seen", SEEN.values(), ids=list(SEEN))
def test_without_noise_the_damped_are_the_network(seen):
    net, x = two_layers(), torch.randn(5, 4)
    predictive = WeightPosterior(net, noisy(net, 1e-9), Categorical(), **seen).predict(x)
    torch.testing.assert_close(predictive.damped, net(x).detach())
    torch.testing.assert_close(predictive.probs, net(x).softmax(1).detach())
    torch.testing.assert_close(predictive.mutual_information(), torch.zeros(5))


def test_more_noise_is_less_confidence_and_never_another_order():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 1), torch.randn(50, 4)
    narrow, wide = (
        WeightPosterior(net, noisy(net, scale), Bernoulli(), **PROBIT).predict(x).damped
        for scale in (0.1, 3)
    )
    assert (wide.abs() < narrow.abs()).all()
    assert torch.equal(wide.sign(), narrow.sign())


def test_a_tangent_is_damped_by_its_own_variance():
    net, x = two_layers(), torch.randn(5, 4)
    tangent = WeightPosterior(net, noisy(net, 0.5), Categorical(), tangent=True)
    samples = tangent.outputs(x, num_samples=64).detach()
    mean = net(x).detach()
    expected = damped(mean, (samples - mean).square().mean(0))
    got = tangent.replaced(average="probit").predict(x, num_samples=64).damped
    torch.testing.assert_close(got, expected)
    plain = tangent.replaced(tangent=False, average="probit").predict(x, num_samples=64).damped
    assert not torch.allclose(plain, got)


def test_a_predictive_of_outputs_can_be_attacked_and_does_not_depend_on_chunks():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    posterior = WeightPosterior(net, noisy(net), Categorical(), **PROBIT)

    def at(inputs: Tensor, **how: int) -> Tensor:
        return posterior.predictive(inputs, posterior.outputs(inputs, num_samples=10, **how)).damped

    (slope,) = torch.autograd.grad(at(x)[:, 0].sum(), x)
    step = 1e-2 * torch.eye(4)[0]
    ahead, behind = (at(x + sign * step)[:, 0] for sign in (1, -1))
    torch.testing.assert_close(slope[:, 0], (ahead - behind).detach() / 0.02, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(at(x, chunk_size=3), at(x))


@pytest.mark.parametrize("seen", SEEN.values(), ids=list(SEEN))
def test_it_is_saved_and_rescaled_as_what_it_is(seen, tmp_path):
    net = two_layers()
    x = torch.randn(40, 4)
    y = net(x).argmax(1)  # all right, so noise is too much
    posterior = WeightPosterior(net, noisy(net, 9.0), Categorical(), **seen)
    again = bayesify.load(bayesify.save(posterior, tmp_path / "a"), net)
    assert torch.equal(again.predict(x).probs, posterior.predict(x).probs)
    fitting = rescaled(posterior, (x, y))
    assert fitting.q.scale["0.weight"].max() < 9
    for each in (again, fitting, copy.deepcopy(posterior)):
        assert (each.tangent, each.average) == (posterior.tangent, posterior.average)


def test_members_with_counters_of_batch_norm_can_be_damped():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    network = fit(net, (x, y), MAP(epochs=1))
    assert network.replaced(average="probit").predict(x).probs.shape == (20, 3)


@pytest.mark.parametrize("seen", [*SEEN.values(), {"tangent": True}])
@pytest.mark.parametrize("method", [Ensemble(members=2, epochs=1), BALI(members=2, pretrain=None)])
def test_networks_trained_apart_have_no_point_to_damp_or_linearise_at(method, seen, tmp_path):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    networks = bayesify.load(bayesify.save(fit(net, (x, y), method), tmp_path / "saved"), net)
    for point in (lambda: networks.replaced(**seen), networks.point):
        with pytest.raises(OptionError, match=r"got 2 networks .* whose mean is no network"):
            point()


def test_numbers_have_no_logits():
    net = nn.Linear(4, 1)
    with pytest.raises(UnsupportedModelError, match="likelihood of classes, got Gaussian"):
        WeightPosterior(net, noisy(net), Gaussian(1.0), **PROBIT)
    WeightPosterior(net, noisy(net), Gaussian(1.0))


def test_a_predictive_without_logits_cannot_be_damped():
    class Own(Categorical):
        def predictive(self, outputs: Tensor) -> RegressionPredictive:
            return RegressionPredictive(outputs, torch.ones(1))

    net = nn.Linear(4, 3)
    with pytest.raises(UnsupportedModelError, match="holds them, got RegressionPredictive"):
        WeightPosterior(net, noisy(net), Own(), **PROBIT).predict(torch.ones(2, 4))


def test_an_average_that_is_none_is_refused():
    net = nn.Linear(4, 3)
    with pytest.raises(OptionError, match="average='mode': expected one of samples, probit"):
        WeightPosterior(net, noisy(net), Categorical(), average="mode")


def test_it_says_how_it_is_seen():
    net = nn.Linear(4, 3)
    posterior = WeightPosterior(net, noisy(net), Categorical(), tangent=True, **PROBIT)
    assert "Categorical, tangent, by probit, samples at once)" in repr(posterior)
