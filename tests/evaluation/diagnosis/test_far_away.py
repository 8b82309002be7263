import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify import Categorical, Gaussian, MeanField, WeightPosterior, first_layer
from bayesify.core.errors import DataError, OptionError, ShapeError, UnsupportedModelError
from bayesify.core.streams import stream
from bayesify.data.readers.toy import two_moons
from bayesify.evaluation.diagnosis.far_away import confidence_along, far_away_limit, overconfidence
from bayesify.weights.structured import StructuredWeight
from conformance.test_distributions import CASES

EXACT = {"rtol": 0, "atol": 1e-6}
"""Remainders are read off outputs near 1e6, which double precision gives to 1e-10."""

S = 200


def relu_net(classes: int, inputs: int = 2, width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def first_layer_posterior(net: nn.Module, scale: float = 0.3, **likelihood: float):
    q = MeanField.around(net, where=first_layer, scale=scale)
    return WeightPosterior(net, q, Categorical(**likelihood))


def compass(count: int = 8) -> Tensor:
    angle = torch.arange(count) * (2 * math.pi / count) + 0.1
    return torch.stack([angle.cos(), angle.sin()], 1)


def sampled_nets(posterior: WeightPosterior, count: int = S) -> list[nn.Module]:
    """The networks that the posterior averages, one by one, in double precision."""
    samples = posterior.q.sample(count, generator=stream(0, "predict"))
    nets = []
    for number in range(posterior.q.size(count)):
        weights = posterior.q.weights(tree_map(lambda each, i=number: each[i], samples))
        net = copy.deepcopy(posterior.model).double().eval()
        for name, each in weights.items():
            value = each.dense() if isinstance(each, StructuredWeight) else each
            module, _, leaf = name.rpartition(".")
            getattr(net.get_submodule(module), leaf).data.copy_(value.detach())
        nets.append(net)
    return nets


def without_biases(net: nn.Module) -> nn.Module:
    """The homogeneous part g of a plain ReLU network."""
    bare = copy.deepcopy(net)
    for name, each in bare.named_parameters():
        if name.endswith("bias"):
            each.data.zero_()
    return bare


@torch.no_grad()
def theorem(posterior: WeightPosterior, directions: Tensor) -> Tensor:
    """The formula by its definition: g from the network without biases, c where g is zero."""
    x, total = directions.double(), 0
    for net in sampled_nets(posterior):
        slope, flat = without_biases(net)(x), (1e9 * x)
        winner = torch.nn.functional.one_hot(slope.argmax(1), slope.shape[1]).double()
        total = total + torch.where((slope == 0).all(1, True), net(flat).softmax(1), winner)
    return total / S


# --- the limit


def test_a_plain_point_estimate_is_certain_in_every_direction():
    posterior = first_layer_posterior(relu_net(3, width=32), scale=1e-7)
    limit = far_away_limit(posterior, compass(), num_samples=4)
    assert limit.shape == (8, 3)
    assert limit.amax(1).eq(1).all()
    assert limit.sum(1).eq(1).all()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_limit_is_that_of_the_theorem(classes, scale):
    posterior = first_layer_posterior(relu_net(classes), scale)
    limit = far_away_limit(posterior, compass(), num_samples=S)
    torch.testing.assert_close(limit, theorem(posterior, compass()), **EXACT)
    assert limit.amax(1).min() < 0.95  # or there would be little to see


@pytest.mark.parametrize("classes", [2, 3])
def test_the_limit_is_the_average_at_a_million_times_the_direction(classes):
    posterior = first_layer_posterior(relu_net(classes))
    x = 1e6 * compass().double()
    with torch.no_grad():
        want = torch.stack([net(x).softmax(1) for net in sampled_nets(posterior)]).mean(0)
    torch.testing.assert_close(
        far_away_limit(posterior, compass(), num_samples=S), want, rtol=0, atol=1e-4
    )
    along = confidence_along(posterior, compass(), [1e6], num_samples=S)
    torch.testing.assert_close(along, want.amax(1)[None], **EXACT)


def test_where_all_units_are_inactive_the_remainder_decides():
    """Two directions along which W x < 0 in every row, whatever is drawn: what is left is f(0)."""
    net = relu_net(3)
    with torch.no_grad():
        net[0].weight.copy_(-0.5 - torch.rand(8, 2))
        net[0].bias.fill_(2.0)
    posterior = first_layer_posterior(net, scale=1e-3)
    limit = far_away_limit(posterior, torch.tensor([[1.0, 0.1], [0.2, 3.0]]), num_samples=16)
    want = net[2:](torch.zeros(1, 8)).softmax(1).expand(2, 3).double()
    torch.testing.assert_close(limit, want, rtol=0, atol=1e-6)
    assert ((limit > 0.01) & (limit < 0.99)).all()


def test_classes_with_one_slope_share_by_their_remainders():
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
        net.bias.copy_(torch.tensor([0.0, math.log(3), 5.0]))
    posterior = WeightPosterior(
        net, MeanField.around(net, where=lambda *_: ["bias"], scale=1e-7), Categorical()
    )
    limit = far_away_limit(posterior, torch.tensor([[1.0, 7.0], [-1.0, 7.0]]), num_samples=4)
    want = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(limit, want, **EXACT)


def test_a_gaussian_linear_model_has_the_probability_of_a_positive_slope():
    """Logits w_k x with independent Gaussian weights: P(class 1) = Phi(mean / deviation)."""
    net, count = nn.Linear(3, 2, bias=False), 4000
    scale = {"weight": 0.1 + torch.rand(2, 3)}
    posterior = WeightPosterior(net, MeanField({"weight": net.weight}, scale), Categorical())
    x = torch.randn(6, 3)
    mean = x @ (net.weight[1] - net.weight[0])
    deviation = (x.square() @ scale["weight"].square().sum(0)).sqrt()
    want = torch.special.ndtr(mean / deviation).detach().double()
    assert want.min() < 0.45
    error = (want * (1 - want) / count).sqrt()
    off = far_away_limit(posterior, x, num_samples=count)[:, 1] - want
    assert (off.abs() < 4 * error).all()


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)),
    ],
    ids=["tanh", "layer_norm", "gelu_norm_relu"],
)
def test_networks_that_level_off_have_the_limit_of_their_values(net):
    posterior = first_layer_posterior(net)
    limit = far_away_limit(posterior, compass(), num_samples=S)
    with torch.no_grad():
        far = torch.stack([each(1e12 * compass().double()) for each in sampled_nets(posterior)])
    torch.testing.assert_close(limit, far.softmax(2).mean(0), **EXACT)
    assert limit.amax(1).max() < 0.99


def test_smooth_relus_and_normalised_images_are_affine_far_away():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip
    posterior = first_layer_posterior(net)
    x = torch.randn(5, 1, 6, 6)
    limit = far_away_limit(posterior, x, num_samples=16)
    along = confidence_along(posterior, x, [1e8], num_samples=16)
    torch.testing.assert_close(along[0], limit.amax(1), rtol=0, atol=1e-4)


def test_a_temperature_is_that_of_the_averaged_predictive():
    posterior = first_layer_posterior(relu_net(2))
    plain = far_away_limit(posterior, compass(), num_samples=S)
    warm = copy.deepcopy(posterior)
    warm.likelihood = Categorical(2.0)
    want = plain.sqrt() / plain.sqrt().sum(1, True)
    torch.testing.assert_close(far_away_limit(warm, compass(), num_samples=S), want)


# --- in double precision


@pytest.mark.parametrize("name", CASES)
def test_the_weight_samples_are_those_of_the_posterior(name):
    """To single precision, which other samples would miss by far; and nothing is changed."""
    net = relu_net(3)
    posterior = WeightPosterior(net, CASES[name].build(net), Categorical())
    x = compass()
    before = posterior.predict(x, num_samples=20).probs
    along = confidence_along(posterior, x, [1.0], num_samples=20)
    assert along.dtype == torch.float64
    torch.testing.assert_close(along[0].float(), before.amax(1), rtol=0, atol=1e-5)
    limit = far_away_limit(posterior, x, num_samples=20)
    far = confidence_along(posterior, x, [1e8], num_samples=20)
    torch.testing.assert_close(far[0], limit.amax(1), rtol=0, atol=1e-4)
    assert torch.equal(posterior.predict(x, num_samples=20).probs, before)
    assert all(each.dtype == torch.float32 for each in posterior.model.parameters())


def test_directions_do_not_disturb_each_other():
    posterior = first_layer_posterior(relu_net(3))
    limit = far_away_limit(posterior, compass(), num_samples=16)
    alone = torch.cat([far_away_limit(posterior, x[None], num_samples=16) for x in compass()])
    torch.testing.assert_close(alone, limit)
    torch.testing.assert_close(far_away_limit(posterior, 7 * compass(), num_samples=16), limit)


# --- the measurement


class Norm(nn.Module):
    """Logits (w |x|, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.01))

    def forward(self, x: Tensor) -> Tensor:
        size = x.flatten(1).norm(dim=1) * self.weight
        return torch.stack([size, torch.zeros_like(size)], 1)


def test_directions_are_as_long_as_the_inputs():
    net = Norm()
    posterior = WeightPosterior(net, MeanField.around(net, scale=1e-9), Categorical())
    x = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, -5.0]])  # root mean square norm: sqrt(17)
    found = overconfidence(posterior, (x, torch.zeros(2)), radii=(0, 1, 10, 100))
    curve = found.curves["far_away"]
    want = torch.sigmoid(0.01 * math.sqrt(17) * torch.tensor([0.0, 1.0, 10.0, 100.0])).tolist()
    for each in ("mean", "low", "high"):
        assert curve[each] == pytest.approx(want, abs=1e-6)
    assert curve["radius"] == [0, 1, 10, 100]
    assert found.metrics == {"far_confidence": 1.0, "far_confident_share": 1.0}


def test_the_numbers_are_those_of_the_limits():
    posterior = first_layer_posterior(relu_net(3))
    found = overconfidence(posterior, (torch.randn(50, 2), torch.zeros(50)), num_samples=32)
    curve = found.curves["far_away"]
    limit = torch.tensor(curve["limit"], dtype=torch.float64)
    assert len(limit) == 64
    assert curve["limit"] == sorted(curve["limit"])
    assert found.metrics["far_confidence"] == curve["limit_mean"]
    assert curve["limit_mean"] == pytest.approx(limit.mean().item(), rel=1e-12)
    assert found.metrics["far_confident_share"] == (limit > 0.99).double().mean().item()
    assert 0 < found.metrics["far_confident_share"] < 1
    for low, mean, high in zip(curve["low"], curve["mean"], curve["high"], strict=True):
        assert 1 / 3 <= low < mean < high <= 1
    far = overconfidence(posterior, (torch.randn(50, 2), torch.zeros(50)), radii=[1e9])
    assert far.curves["far_away"]["mean"][0] == pytest.approx(
        far.metrics["far_confidence"], abs=1e-5
    )
    assert json.loads(json.dumps(curve)) == curve


def test_it_depends_on_the_seed_and_on_neither_batches_nor_the_global_generator():
    posterior = first_layer_posterior(relu_net(3))
    data = torch.randn(50, 2), torch.zeros(50)
    how = {"directions": 8, "num_samples": 8, "radii": (1, 10)}
    found = overconfidence(posterior, data, **how)
    loader = DataLoader(TensorDataset(*data), batch_size=7)
    torch.manual_seed(5)
    again = overconfidence(posterior, loader, **how).curves["far_away"]
    for name, each in found.curves["far_away"].items():
        assert again[name] == pytest.approx(each, rel=1e-9)
    assert overconfidence(posterior, data, **how) == found
    assert overconfidence(posterior, data, seed=1, **how) != found


def test_a_bayesian_first_layer_is_less_sure_far_from_two_moons():
    x, y = two_moons(100, generator=torch.Generator().manual_seed(0))
    net, pretrain = relu_net(2, width=20), bayesify.MAP(epochs=40)
    single = bayesify.fit(net, (x, y), pretrain, seed=0)
    fused = bayesify.fit(net, (x, y), bayesify.STF(pretrain=pretrain, epochs=100), seed=0)
    certain, less = (overconfidence(each, (x, y)).metrics for each in (single, fused))
    assert certain == {"far_confidence": 1.0, "far_confident_share": 1.0}
    assert (
        less["far_confidence"] < 0.995
    )  # of 1,024 draws and directions the network is sure in all
    assert less["far_confident_share"] < 1


# --- what is refused


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).square()


class Halves(Squares):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).float()


class Everywhere(Squares):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)[:, :, None].expand(-1, -1, 4)


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (Squares(), UnsupportedModelError, "not affine far away: 128 of 128 rays"),
        (Halves(), UnsupportedModelError, "float32 for float64"),
        (Everywhere(), ShapeError, "one prediction per input"),
    ],
)
def test_models_without_a_limit_are_refused(net, error, message):
    with pytest.raises(error, match=message):
        far_away_limit(first_layer_posterior(net), compass(), num_samples=16)


def test_other_posteriors_and_likelihoods_are_refused():
    net = relu_net(2)
    gaussian = WeightPosterior(net, MeanField.around(net), Gaussian(1.0))
    data = torch.randn(4, 2), torch.zeros(4)
    with pytest.raises(OptionError, match="categorical likelihood, got Gaussian"):
        overconfidence(gaussian, data)
    with pytest.raises(UnsupportedModelError, match="expected a WeightPosterior"):
        overconfidence(net, data)


def test_useless_directions_radii_and_data_are_refused():
    posterior = first_layer_posterior(relu_net(2))
    with pytest.raises(DataError, match="other than zero"):
        far_away_limit(posterior, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(DataError, match="finite directions"):
        confidence_along(posterior, torch.tensor([[torch.inf, 0.0]]), [1])
    for radii in ([], [-1.0], [math.inf], [math.nan]):
        with pytest.raises(OptionError, match="at least one finite"):
            confidence_along(posterior, compass(), radii)
    with pytest.raises(OptionError, match="directions=0"):
        overconfidence(posterior, (torch.randn(4, 2), torch.zeros(4)), directions=0)
    with pytest.raises(DataError, match="not all zero"):
        overconfidence(posterior, (torch.zeros(4, 2), torch.zeros(4)))
    with pytest.raises(UnsupportedModelError, match="real numbers"):
        overconfidence(posterior, (torch.ones(4, 2).long(), torch.zeros(4)))


def test_a_posterior_by_probit_is_judged_by_its_samples_and_a_tangent_not_at_all():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    plain = WeightPosterior(net, MeanField.around(net, scale=0.7), Categorical())
    damping = plain.replaced(average="probit")
    torch.testing.assert_close(far_away_limit(damping, x), far_away_limit(plain, x))
    for each in (plain, damping):
        with pytest.raises(UnsupportedModelError, match=r"whose network itself .* the tangent of"):
            far_away_limit(each.replaced(tangent=True), x)
