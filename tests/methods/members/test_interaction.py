import pytest
import torch
from torch import Tensor, nn

from bayesify.core.errors import OptionError
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.particles import Particles
from bayesify.likelihoods import Categorical
from bayesify.methods.members.interaction import clip_members_, svgd_
from bayesify.numerics.kernels import median_bandwidth
from bayesify.training.objective import member_losses
from bayesify.weights.named import buffers_of
from zoo import CLASSES, NETS

NUM_DATA, TEMPERATURE = 40, 3.0

KERNELS = {
    "weights": (Particles, "product"),
    "products": (LowRankParticles, "product"),
    "factors": (LowRankParticles, "factor"),
}


def members_of(kind: type, net: str, members: int) -> Particles | LowRankParticles:
    if kind is Particles:
        return Particles.of_models([NETS[net].model(seed).double() for seed in range(members)])
    model = NETS[net].model().double()
    q = LowRankParticles.around(
        model, members=members, rank=2, scale=0.7, noise=0.3, buffers=list(buffers_of(model))
    )
    with torch.no_grad():
        for each in q.offsets.parameters():
            each.copy_(0.1 * torch.randn_like(each))
    return q


def with_gradients(kind: type, net: str, members: int = 4) -> Particles | LowRankParticles:
    q = members_of(kind, net, members)
    model, x = NETS[net].model().double(), NETS[net].inputs(6).double()
    y = torch.arange(6) % CLASSES
    member_losses(model, q, Categorical(), x, y).sum().backward()
    return q


def coordinates(q: Particles | LowRankParticles, own: dict[str, Tensor], kernel: str) -> Tensor:
    """What the kernel compares, of one member whose parameters are `own`."""
    products = [
        q.scale * own[name.replace("down.", "up.", 1)] @ each
        for name, each in own.items()
        if kernel == "product" and name.startswith("down.")
    ]
    return torch.cat([each.flatten() for each in (*own.values(), *products)])


def by_the_definition(q: Particles | LowRankParticles, kernel: str) -> dict[str, Tensor]:
    """phi from its double sum, every slope of k(w_j, w_i) by autograd of one pair.

    It is that in w_j, as published, and for products in the factors of j.
    """
    held = {name: each.detach() for name, each in q.named_parameters()}
    count = q.size(1)

    def member(m: int) -> dict[str, Tensor]:
        return {name: each[m].clone().requires_grad_() for name, each in held.items()}

    places = torch.stack([coordinates(q, member(m), kernel) for m in range(count)]).detach()
    h = median_bandwidth((places[:, None] - places).square().sum(2))
    result = {name: torch.zeros_like(each) for name, each in held.items()}
    for i in range(count):
        for j in range(count):
            other = member(j)
            k = torch.exp(-(coordinates(q, other, kernel) - places[i]).square().sum() / h)
            slopes = torch.autograd.grad(k, list(other.values()))
            for (name, each), slope in zip(q.named_parameters(), slopes, strict=True):
                g = 0 if each.grad is None else each.grad[j]
                away = TEMPERATURE / NUM_DATA * slope
                result[name][i] += (k.detach() * g - away) / count
    return result


def gradients(q: Particles | LowRankParticles) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in q.named_parameters()}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want)
    for name, each in got.items():
        torch.testing.assert_close(each, want[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("net", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_direction_is_its_definition(kernel, net):
    kind, space = KERNELS[kernel]
    q = with_gradients(kind, net)
    want, before = by_the_definition(q, space), gradients(q)
    svgd_(q, num_data=NUM_DATA, temperature=TEMPERATURE, kernel=space)
    assert_close(gradients(q), want)
    for name, each in gradients(q).items():
        assert (each - before[name]).norm() > 0.1 * before[name].norm()


def test_the_temperature_is_one_if_not_said():
    first, second = with_gradients(Particles, "mlp"), with_gradients(Particles, "mlp")
    svgd_(first, num_data=NUM_DATA)
    svgd_(second, num_data=3 * NUM_DATA, temperature=3.0)
    assert_close(gradients(first), gradients(second))


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_member_keeps_its_gradient(kernel):
    kind, space = KERNELS[kernel]
    q = with_gradients(kind, "mlp", members=1)
    before = gradients(q)
    svgd_(q, num_data=NUM_DATA, kernel=space)
    assert all(torch.equal(each, before[name]) for name, each in gradients(q).items())


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_parameter_without_gradient_is_only_repelled(kernel):
    kind, space = KERNELS[kernel]
    q = with_gradients(kind, "mlp")
    missing = next(iter(q.parameters()))
    missing.grad = None
    want = by_the_definition(q, space)
    svgd_(q, num_data=NUM_DATA, temperature=TEMPERATURE, kernel=space)
    assert_close(gradients(q), want)
    assert missing.grad.abs().max() > 0


def test_frozen_weights_get_no_gradient_and_count_for_no_distance():
    models = [NETS["mlp"].model(seed).double() for seed in range(3)]
    for model in models:
        model[0].requires_grad_(False)
    q = Particles.of_models(models)
    alone = Particles.of_models([nn.Sequential(*list(each)[1:]) for each in models])
    learnt = [each for each in q.members.parameters() if each.requires_grad]
    for each, of in zip(learnt, alone.parameters(), strict=True):
        each.grad = torch.randn_like(each)
        of.grad = each.grad.clone()
    for each in (q, alone):
        svgd_(each, num_data=NUM_DATA, temperature=TEMPERATURE)
    assert q.members.named()["0.weight"].grad is None
    for each, of in zip(learnt, alone.parameters(), strict=True):
        torch.testing.assert_close(each.grad, of.grad)


def test_a_kernel_that_is_unknown_is_refused():
    with pytest.raises(OptionError, match="factors"):
        svgd_(with_gradients(LowRankParticles, "mlp"), num_data=NUM_DATA, kernel="factors")


def test_the_weights_do_not_move():
    q = with_gradients(LowRankParticles, "cnn")
    before = {name: each.clone() for name, each in q.state_dict().items()}
    svgd_(q, num_data=NUM_DATA)
    assert all(torch.equal(each, before[name]) for name, each in q.state_dict().items())


def parameters(*scales: float) -> list[Tensor]:
    """Two tensors of members whose gradients are random, times these numbers."""
    shapes = ((len(scales), 3, 2), (len(scales), 5))
    result = [torch.zeros(each, requires_grad=True) for each in shapes]
    for each in result:
        sizes = torch.tensor(scales).view(-1, *[1] * (each.ndim - 1))
        each.grad = sizes * torch.randn_like(each)
    return result


def joined(parameters: list[Tensor]) -> Tensor:
    """(M, coordinates) of the gradients."""
    return torch.cat([each.grad.flatten(1) for each in parameters], 1).clone()


def test_each_member_is_clipped_by_its_own_norm():
    held = parameters(1e-3, 10.0, 1e6)
    before = joined(held)
    clip_members_(held, 1.0)
    after = joined(held)
    assert torch.equal(after[0], before[0])
    for m in (1, 2):
        torch.testing.assert_close(after[m], before[m] / before[m].norm())


def test_a_huge_gradient_of_one_member_does_not_change_the_others():
    q = with_gradients(LowRankParticles, "cnn")
    before = gradients(q)
    with torch.no_grad():
        for each in q.parameters():
            each.grad[2] *= 1e6
    limit = 1.01 * joined(list(q.parameters()))[[0, 1, 3]].norm(dim=1).max().item()
    clip_members_(q.parameters(), limit)
    norms = joined(list(q.parameters())).norm(dim=1)
    assert norms[2] == pytest.approx(limit)
    for name, each in gradients(q).items():
        assert torch.equal(each[[0, 1, 3]], before[name][[0, 1, 3]])


def test_clipping_is_that_of_torch_for_each_member_alone():
    held = parameters(0.1, 1.0, 5.0)
    want = []
    for m in range(3):
        alone = [each.detach()[m].clone().requires_grad_() for each in held]
        for each, of in zip(alone, held, strict=True):
            each.grad = of.grad[m].clone()
        nn.utils.clip_grad_norm_(alone, 2.0)
        want.append(torch.cat([each.grad.flatten() for each in alone]))
    clip_members_(held, 2.0)
    torch.testing.assert_close(joined(held), torch.stack(want), rtol=1e-5, atol=0)


def test_parameters_without_gradient_are_left_out_of_the_norm():
    held = parameters(10.0, 10.0)
    held[0].grad = None
    before = held[1].grad.clone()
    clip_members_(iter(held), 1.0)
    assert held[0].grad is None
    torch.testing.assert_close(held[1].grad, before / before.norm(dim=1, keepdim=True))
    held[1].grad = None
    clip_members_(held, 1.0)
    assert held[1].grad is None


def test_a_gradient_of_nothing_stays_nothing():
    held = parameters(0.0, 1.0)
    clip_members_(held, 0.1)
    assert joined(held)[0].abs().max() == 0
    assert joined(held)[1].norm() == pytest.approx(0.1)


@pytest.mark.parametrize("common_down", [True, False])
@pytest.mark.parametrize("kernel", ["product", "factor"])
@pytest.mark.parametrize(("truth", "noise"), [(1.5, 0.5), (0.0, 2.0)])
def test_a_product_of_two_numbers_has_the_law_of_its_posterior(truth, noise, kernel, common_down):
    """w = .3 + b a with a, b ~ N(0, 1) and y ~ N(w x, noise^2), exactly, on a grid over (a, b).

    SVGD's spread falls short where members are few: by up to a quarter of the variance at 40.
    """
    x = torch.randn(20, dtype=torch.float64)
    y = truth * x + noise * torch.randn(20, dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:  # nats in all, up to a constant
        return (w**2 * (x @ x) - 2 * w * (x @ y)) / (2 * noise**2)

    grid = torch.linspace(-6, 6, 601, dtype=torch.float64)
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    p = (-loss(0.3 + a * b) - (a**2 + b**2) / 2).flatten().softmax(0)
    w = (0.3 + a * b).flatten()
    mean, variance = p @ w, p @ w**2 - (p @ w) ** 2

    net = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(net.weight, 0.3)
    q = LowRankParticles.around(net, members=40, rank=1, noise=1.0, common_down=common_down)
    down, up = q.down.named()["weight"], q.up.named()["weight"]
    adam = torch.optim.Adam(q.parameters(), lr=0.06)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 500)
    for _ in range(500):
        adam.zero_grad()
        prior = (down.square().sum() + up.square().sum()) / 2
        ((loss(0.3 + (up @ down).flatten()).sum() + prior) / len(x)).backward()
        svgd_(q, num_data=len(x), kernel=kernel)
        adam.step()
        fall.step()
    got = 0.3 + (up @ down).detach().flatten()
    assert (got.mean() - mean).abs() < 0.2 * variance.sqrt()
    assert 0.7 < got.var() / variance < 1.3
