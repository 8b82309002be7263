import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesify import forward
from bayesify.distributions.mean_field import MeanField
from bayesify.weights.gaussian import GaussianWeight

from ..zoo import NETS


def test_each_example_sees_noise_of_its_own(generator):
    weight = GaussianWeight(torch.ones(3, 4), torch.ones(3, 4), generator)
    out = F.linear(torch.ones(5, 4), weight)
    assert len(out.unique()) == 15


def test_a_dense_weight_is_one_draw_for_the_whole_pass(generator):
    weight = GaussianWeight(torch.ones(3, 4), torch.ones(3, 4), generator)
    assert torch.equal(weight + 0, weight.T.T + 0)
    assert not torch.allclose(weight + 0, torch.ones(3, 4))


def test_a_seed_decides_the_noise():
    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        return F.linear(
            torch.ones(2, 4), GaussianWeight(torch.ones(3, 4), torch.ones(3, 4), generator)
        )

    before = torch.get_rng_state()
    assert torch.equal(draw(), draw())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_smallest_scales_have_finite_gradients(generator):
    scale = torch.zeros(3, 4, requires_grad=True)
    F.linear(torch.zeros(2, 4), GaussianWeight(torch.ones(3, 4), scale, generator)).sum().backward()
    assert torch.isfinite(scale.grad).all()


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_gradients_vary_less_than_with_weight_samples(net):
    model, x = NETS[net].model().eval(), NETS[net].inputs(64)
    q = MeanField.around(model, scale=0.3)

    def spread(run) -> float:
        rows = []
        for seed in range(150):
            out = run(model, q, x, 1, generator=torch.Generator().manual_seed(seed))
            grads = torch.autograd.grad(out.square().mean(), list(q.rho.parameters()))
            rows.append(torch.cat([each.flatten() for each in grads]))
        return torch.stack(rows).var(0).sum().item()

    assert spread(forward.local_outputs) < 0.5 * spread(forward.outputs)


def test_gradients_agree_in_expectation_with_weight_samples():
    model, x = nn.Linear(3, 1).double(), torch.randn(40, 3).double()
    q = MeanField.around(model, scale=0.5)

    def mean_gradient(run) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        out = run(model, q, x, 4000, generator=generator)
        grads = torch.autograd.grad(out.square().mean(), list(q.parameters()))
        return torch.cat([each.flatten() for each in grads])

    torch.testing.assert_close(
        mean_gradient(forward.local_outputs), mean_gradient(forward.outputs), rtol=0.1, atol=0.02
    )
