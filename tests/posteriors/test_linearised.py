import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import bayesify
from bayesify import MeanField, WeightPosterior, last_layer, rescaled
from bayesify.core.batches import rows
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.modes import attention_for_vmap
from bayesify.core.types import Inputs, Named
from bayesify.distributions.dense_normal import DenseNormal
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.particles import Particles
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import Categorical, Gaussian
from bayesify.posteriors.linearised import LinearisedPosterior
from bayesify.posteriors.scale import times
from bayesify.tracing.trace import call_arguments
from bayesify.weights.named import copied, weights_of
from bayesify.weights.structured import StructuredWeight
from zoo import NETS

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
    posterior = LinearisedPosterior(model, q, Categorical(), vectorize=vectorize)
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
    posterior = LinearisedPosterior(model, Steps(members, {}), Categorical())
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
        out = LinearisedPosterior(model, q, Categorical()).outputs(x, num_samples=4000)
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
        posterior = LinearisedPosterior(model, q, Categorical())
        got = posterior.outputs(x, num_samples=3, generator=seeded())
    torch.testing.assert_close(got, by_hand(posterior, x, 3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("vectorize", [True, False])
def test_it_is_differentiable_in_the_inputs(vectorize):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    q = MeanField.around(model, scale=0.5)
    posterior = LinearisedPosterior(model, q, Categorical(), vectorize=vectorize)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: posterior.outputs(each, num_samples=3), x)


def test_the_gradient_reaches_the_distribution():
    model, x = case("mlp")
    posterior = LinearisedPosterior(model, MeanField.around(model, scale=0.5), Categorical())
    posterior.outputs(x, num_samples=3).square().sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in posterior.q.parameters())


def test_a_last_layer_is_linear_already():
    model, x = case("cnn")
    q = MeanField.around(model, where=last_layer, scale=3.0, example=x)
    with torch.no_grad():
        plain, linear = (
            kind(model, q, Categorical()).outputs(x, num_samples=4)
            for kind in (WeightPosterior, LinearisedPosterior)
        )
    torch.testing.assert_close(plain, linear)


@pytest.mark.parametrize("net", SMOOTH)
def test_examples_do_not_meet_and_the_model_is_left_alone(net):
    model, x = case(net)
    model.train()
    before = copied(weights_of(model))
    posterior = LinearisedPosterior(model, MeanField.around(model, scale=0.3), Categorical())
    whole = posterior.predict(x, num_samples=6)
    for i in range(5):
        alone = posterior.predict(rows(x, slice(i, i + 1)), num_samples=6)
        torch.testing.assert_close(alone.logits[:, 0], whole.logits[:, i])
    assert all(each.training for each in model.modules())
    assert all(torch.equal(each, before[name]) for name, each in weights_of(model).items())


def test_changing_the_distribution_keeps_it_linear():
    model, x = case("mlp")
    posterior = LinearisedPosterior(model, MeanField.around(model, scale=0.5), Gaussian(1.0))
    value = tangent(model, x)[0]
    with torch.no_grad():
        one, three = (times(posterior, each).outputs(x) - value for each in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)  # only of what is linear
    again = copy.deepcopy(posterior)
    assert type(again) is LinearisedPosterior
    assert torch.equal(again.outputs(x), posterior.outputs(x))
    held_out = x, torch.randint(3, (5,))
    wide = LinearisedPosterior(model, MeanField.around(model, scale=9.0), Categorical())
    assert type(rescaled(wide, held_out)) is LinearisedPosterior


def test_it_comes_back_from_a_folder(tmp_path):
    model, x = case("mlp")
    posterior = LinearisedPosterior(model, MeanField.around(model, scale=0.5), Categorical())
    again = bayesify.load(bayesify.save(posterior, tmp_path / "saved"), case("mlp")[0])
    assert type(again) is LinearisedPosterior
    assert repr(again) == repr(posterior)
    assert torch.equal(again.outputs(x), posterior.outputs(x))
    assert not torch.equal(WeightPosterior.outputs(again, x), again.outputs(x))


def test_statistics_of_batch_norm_are_not_linearised():
    q = Particles.of_models([NETS["cnn"].model()])
    with pytest.raises(UnsupportedModelError, match=r"sets the buffers 1.num_batches_tracked, "):
        LinearisedPosterior(NETS["cnn"].model(), q, Categorical())


def test_a_layer_without_a_derivative_in_forward_mode_is_named():
    model, x = NETS["lstm"].model(), NETS["lstm"].inputs(3)
    posterior = LinearisedPosterior(model, MeanField.around(model, scale=0.1), Categorical())
    with pytest.raises(UnsupportedModelError, match=r"LSTMNet cannot be linearised: .*rnn"):
        posterior.outputs(x)
    head = MeanField.around(model, where=last_layer, scale=0.1, example=x)
    assert LinearisedPosterior(model, head, Categorical()).outputs(x).shape == (32, 3, 3)
