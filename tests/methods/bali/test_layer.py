import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesify.core.errors import UnsupportedModelError
from bayesify.distributions.matrix_normal import Layer
from bayesify.methods.bali.layer import LearntLayer
from bayesify.numerics.layer_regression import LayerRegression
from bayesify.tracing.linear_maps import LinearMap
from bayesify.weights.regression import RegressionWeight
from bayesify.weights.taped import Tape, Use


def layer(bias: str | None = "b") -> LearntLayer:
    weight, offset = torch.randn(2, 3, 4).double(), torch.randn(2, 3).double()
    linear_map = LinearMap("w", "b")
    matrix = linear_map.matrix(weight, offset if bias else None)
    gram = torch.eye(matrix.shape[1]).repeat(2, 1, 1)
    regression = LayerRegression.start(matrix, gram, prior_precision=1.0, covariance=0.1)
    return LearntLayer(linear_map, Layer("w", bias), torch.Size([3, 4]), regression)


def test_means_are_the_weights_it_was_made_of():
    found = layer()
    means = found.means(torch.float64)
    assert {name: tuple(each.shape) for name, each in means.items()} == {
        "w": (2, 3, 4),
        "b": (2, 3),
    }
    x = torch.randn(5, 4).double()
    h = torch.cat([x, torch.ones(5, 1).double()], 1)
    want = h @ found.regression.mean[1]
    torch.testing.assert_close(F.linear(x, means["w"][1], means["b"][1]), want)
    assert list(layer(None).means(torch.float32)) == ["w"]
    assert layer(None).means(torch.float32)["w"].dtype == torch.float32


@pytest.mark.parametrize(("is_output", "variance"), [(False, 2 / 300), (True, 1 / 300)])
def test_drawn_anew_layers_have_the_variance_that_keeps_activations_alike(is_output, variance):
    matrix = torch.zeros(2, 301, 400).double()
    gram = torch.eye(301).repeat(2, 1, 1)
    regression = LayerRegression.start(matrix, gram, prior_precision=1.0, covariance=0.1)
    found = LearntLayer(
        LinearMap("w", "b"), Layer("w", "b"), torch.Size([400, 300]), regression, is_output
    )
    found.draw_anew_(torch.Generator().manual_seed(0))
    weights, biases = found.regression.mean[:, :300], found.regression.mean[:, 300]
    assert torch.equal(biases, torch.zeros(2, 400).double())
    for member in weights:  # 120,000 draws: the variance is known to .4 %
        assert member.var().item() == pytest.approx(variance, rel=0.02)
        assert abs(member.mean().item()) < 4 * (variance / member.numel()) ** 0.5
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(found.regression.row, regression.row)  # the data are yet to be seen


def test_rows_of_the_tape_have_the_members_in_front_and_uses_one_after_the_other():
    tape, found = Tape(), layer()
    tape.calls.append({})
    for size in (5, 2):  # a weight that is used twice
        use = Use(torch.randn(1, size, 4), torch.zeros(2, size, 3), (0, 0))
        use.gradient = torch.full((2, size, 3), float(size))
        tape.note("w", use)
    h, g = found.features(tape), found.gradient(tape)
    assert h.shape == (1, 7, 5)
    assert torch.equal(h[..., -1], torch.ones(1, 7))
    assert g.shape == (2, 7, 3)
    assert g[0, :, 0].tolist() == [5.0] * 5 + [2.0] * 2


def test_a_member_is_called_with_a_weight_that_makes_noise_and_the_mean_of_its_bias():
    found = layer()
    members = found.members(torch.float64)
    member = {
        "loc": {name: each[0] for name, each in members["loc"].items()},
        "row": members["row"][0],
        "column": members["column"][0],
    }
    called = found.noisy(member, torch.Generator().manual_seed(0))
    assert isinstance(called["w"], RegressionWeight)
    assert torch.equal(called["b"], found.means(torch.float64)["b"][0])
    net = nn.Linear(4, 3).double()
    x = torch.randn(6, 4).double()
    out = torch.func.functional_call(net, {"weight": called["w"], "bias": called["b"]}, (x,))
    mean = F.linear(x, member["loc"]["w"], member["loc"]["b"])
    assert not torch.allclose(out, mean)
    assert (out - mean).abs().max() < 3.0  # sd is at most sqrt(.1 * |h|^2 / 2)


def test_a_layer_that_was_skipped_is_named():
    tape = Tape()
    tape.calls.append({})
    with pytest.raises(UnsupportedModelError, match="'w' has no part"):
        layer().features(tape)
