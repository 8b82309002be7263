import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesify.forward.input_gradients import frozen_layers
from bayesify.weights.gaussian import GaussianWeight

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 8, 9)),
    "conv2d dilated": (lambda: nn.Conv2d(4, 4, 3, dilation=2, bias=False), (3, 4, 8, 8)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, (3, 1), padding=(1, 0), groups=4), (3, 4, 5, 5)),
    "conv2d same": (lambda: nn.Conv2d(4, 4, 3, padding="same"), (3, 4, 5, 5)),
    "conv2d circular": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        (3, 4, 5, 5),
    ),
    "conv2d unbatched": (lambda: nn.Conv2d(4, 4, 3), (4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 4, 4, 4)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(5), (7, 5)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(5), (7, 5, 3, 3)),
    "batch norm without affine": (lambda: nn.BatchNorm2d(5, affine=False), (7, 5, 3, 3)),
    "batch norm without statistics": (
        lambda: nn.BatchNorm2d(5, track_running_stats=False),
        (7, 5, 3, 3),
    ),
}


@pytest.fixture(params=LAYERS)
def case(request, generator):
    build, shape = LAYERS[request.param]
    layer = build().double()
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    for _ in range(3 if len(shape) == x.ndim and "norm" in request.param else 0):
        layer(x * 2 + 1)  # running statistics other than their start
    return layer.eval().requires_grad_(False), x


def output_and_gradient(layer, x):
    x = x.clone().requires_grad_()
    output = layer(x)
    weighting = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, torch.autograd.grad(output, x, weighting)[0]


def test_output_and_input_gradient_are_those_of_the_layer(case):
    layer, x = case
    expected = output_and_gradient(layer, x)
    with frozen_layers():
        got = output_and_gradient(layer, x)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-12, atol=1e-12)


def test_weights_that_want_a_gradient_get_it(generator):
    x = torch.randn(2, 3, 5, 5, generator=generator, requires_grad=True)
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval())
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    with frozen_layers():
        got = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(got, expected)


def test_batch_norm_in_train_mode_still_learns_its_statistics(generator):
    x = torch.randn(8, 4, generator=generator, requires_grad=True)
    layer = nn.BatchNorm1d(4).requires_grad_(False)
    with frozen_layers():
        output = layer(x)
    torch.testing.assert_close(output.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert layer.num_batches_tracked == 1


def test_structured_weights_act_in_their_own_way(generator):
    x = torch.randn(500, 1, 4, 4, generator=generator, requires_grad=True)
    loc, scale = torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 0.5)
    with frozen_layers():
        noisy = F.conv2d(x, GaussianWeight(loc, scale, generator))
    assert noisy.std() > 1  # sqrt(9) * 0.5 = 1.5 for standard normal inputs


def test_no_gradient_wanted_leaves_no_graph():
    layer = nn.Conv2d(1, 1, 3).requires_grad_(False)
    with frozen_layers(), torch.no_grad():
        assert not layer(torch.ones(1, 1, 4, 4, requires_grad=True)).requires_grad
