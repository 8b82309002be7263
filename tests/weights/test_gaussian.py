import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bayesify.distributions.mean_field import MeanField
from bayesify.forward import outputs as forward
from bayesify.weights.gaussian import GaussianWeight
from bayesify.weights.noise_scope import NoiseScope, OtherUseError, Scopes, noise_scopes
from zoo import NETS


@pytest.mark.parametrize("scope", NoiseScope)
def test_examples_share_a_draw_as_the_scope_says(scope, generator):
    weight = GaussianWeight(torch.ones(3, 4), torch.ones(3, 4), generator, scope)
    out = F.linear(torch.ones(5, 4), weight)
    assert len(out.unique(dim=0)) == (1 if scope is NoiseScope.BATCH else 5)


def test_a_use_beyond_the_scope_is_an_error(generator):
    def weight(scope: NoiseScope) -> GaussianWeight:
        return GaussianWeight(torch.ones(4, 4), torch.ones(4, 4), generator, scope)

    row, example = weight(NoiseScope.ROW), weight(NoiseScope.EXAMPLE)
    F.linear(torch.ones(5, 4), row)
    F.linear(torch.ones(5, 4), example)
    F.linear(torch.ones(5, 4), example)  # again is what it allows
    for use in (
        lambda: F.linear(torch.ones(5, 4), row),  # twice
        lambda: F.linear(torch.ones(5, 2, 4), weight(NoiseScope.ROW)),  # many rows
        lambda: F.linear(torch.ones(6, 4), example),  # another number of examples
        lambda: example.T,
        lambda: row + 1,
    ):
        with pytest.raises(OtherUseError):
            use()


def test_a_dense_weight_is_one_draw_for_the_whole_pass(generator):
    weight = GaussianWeight(torch.ones(3, 4), torch.ones(3, 4), generator)
    assert torch.equal(weight + 0, weight.T.T + 0)
    assert not torch.allclose(weight + 0, torch.ones(3, 4))


@pytest.mark.parametrize("scope", NoiseScope)
def test_a_seed_decides_the_noise(scope):
    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        weight = GaussianWeight(torch.ones(3, 4), torch.ones(3, 4), generator, scope)
        return F.linear(torch.ones(2, 4), weight)

    before = torch.get_rng_state()
    assert torch.equal(draw(), draw())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_smallest_scales_have_finite_gradients(generator):
    scale = torch.zeros(3, 4, requires_grad=True)
    weight = GaussianWeight(torch.ones(3, 4), scale, generator, NoiseScope.ROW)
    F.linear(torch.zeros(2, 4), weight).sum().backward()
    assert torch.isfinite(scale.grad).all()


@pytest.mark.parametrize(("net", "share"), [("mlp", 0.1), ("cnn", 0.5), ("transformer", 0.8)])
def test_gradients_vary_less_than_with_weight_samples(net, share):
    model, x = NETS[net].model().eval(), NETS[net].inputs(64)
    q = MeanField.around(model, scale=0.1)

    def spread(scopes: Scopes | None) -> float:
        rows = []
        for seed in range(150):
            generator = torch.Generator().manual_seed(seed)
            out = forward.local_outputs(model, q, x, 1, generator=generator, scopes=scopes)
            grads = torch.autograd.grad(out.square().mean(), list(q.loc.parameters()))
            rows.append(torch.cat([each.flatten() for each in grads]))
        return torch.stack(rows).var(0).sum().item()

    assert spread(noise_scopes(model, x)) < share * spread(None)


@pytest.mark.parametrize("net", ["mlp", "cnn", "transformer"])
def test_gradients_agree_in_expectation_with_weight_samples(net):
    model, x = NETS[net].model().eval().double(), NETS[net].inputs(8).double()
    q = MeanField.around(model, scale=0.1)

    def gradients(scopes: Scopes | None, seed: int) -> Tensor:
        generator, rows = torch.Generator().manual_seed(seed), []
        for _ in range(600):
            out = forward.local_outputs(model, q, x, 1, generator=generator, scopes=scopes)
            grads = torch.autograd.grad(out.square().mean(), list(q.parameters()))
            rows.append(torch.cat([each.flatten() for each in grads]))
        return torch.stack(rows)

    got, want = gradients(noise_scopes(model, x), 1), gradients(None, 2)
    error = ((got.var(0) + want.var(0)) / len(got)).sqrt()
    assert ((got.mean(0) - want.mean(0)).abs() <= 5 * error + 1e-12).all()
