import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesify.tracing.linear_maps import LinearMap, Roles, roles
from zoo import NETS

TIGHT = {"rtol": 1e-12, "atol": 1e-12}

UNFOLDED = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear of one example": (lambda: nn.Linear(5, 3), (5,)),
    "linear of sequences": (lambda: nn.Linear(5, 3), (4, 6, 5)),
    "linear of images": (lambda: nn.Linear(5, 3), (2, 3, 4, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), (4, 2, 9)),
    "conv1d with all options": (lambda: nn.Conv1d(2, 3, 3, 2, 1, 2), (4, 2, 9)),
    "conv1d of an even kernel, same": (lambda: nn.Conv1d(2, 3, 4, padding="same"), (4, 2, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), (4, 2, 6, 7)),
    "conv2d strided": (lambda: nn.Conv2d(2, 3, 3, stride=2), (4, 2, 6, 7)),
    "conv2d strided by axis": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 1)), (4, 2, 6, 7)),
    "conv2d padded": (lambda: nn.Conv2d(2, 3, 3, padding=1), (4, 2, 6, 7)),
    "conv2d padded by axis": (lambda: nn.Conv2d(2, 3, (3, 2), padding=(2, 1)), (4, 2, 6, 7)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (4, 2, 6, 7)),
    "conv2d of an even kernel, same": (
        lambda: nn.Conv2d(2, 3, (4, 2), padding="same", dilation=(1, 3)),
        (4, 2, 6, 7),
    ),
    "conv2d valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (4, 2, 6, 7)),
    "conv2d dilated": (lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2), (4, 2, 6, 7)),
    "conv2d with all options": (
        lambda: nn.Conv2d(2, 3, (3, 2), (2, 3), (1, 2), (1, 2)),
        (4, 2, 8, 9),
    ),
    "conv2d of one pixel": (lambda: nn.Conv2d(2, 3, 1), (4, 2, 6, 7)),
}


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer in double precision, and the shape of an input."""
    build, shape = UNFOLDED[name]
    return build().double(), shape


def only_map(model: nn.Module, example: Tensor) -> LinearMap:
    found = roles(model, example)
    assert found.others == {}
    (linear_map,) = found.maps
    return linear_map


# --- what a map does


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("name", UNFOLDED)
def test_the_output_is_rows_of_features_times_the_matrix(name, has_bias):
    layer, shape = built(name)
    bias = torch.randn(3).double() if has_bias else None
    layer.bias = None if bias is None else nn.Parameter(bias)
    x = torch.randn(shape).double()
    z = layer(x).detach()
    each = only_map(layer, x)
    assert (each.weight, each.bias) == ("weight", "bias" if has_bias else None)

    weight = layer.weight.detach()
    matrix = each.matrix(weight[None], None if bias is None else bias[None])[0]  # (a, b)
    h = each.features(x, constant=has_bias)
    torch.testing.assert_close(h @ matrix, each.rows(z), **TIGHT)
    assert torch.equal(each.arranged(each.rows(z), z), z)
    assert torch.equal(each.rows(each.arranged(h @ matrix, z)), h @ matrix)


@pytest.mark.parametrize("name", ["linear of sequences", "conv1d", "conv2d with all options"])
def test_rows_of_the_gradient_give_the_gradients_of_the_weights(name):
    """dL/dW~ = H^T G, which needs features and rows in the same order."""
    layer, shape = built(name)
    x = torch.randn(shape).double()
    z = layer(x)
    gradient = torch.randn_like(z)
    want = torch.autograd.grad(z, [layer.weight, layer.bias], gradient)
    each = only_map(layer, x)
    got = each.features(x, constant=True).T @ each.rows(gradient)
    torch.testing.assert_close(got, each.matrix(want[0][None], want[1][None])[0], **TIGHT)


def test_the_constant_is_the_last_feature():
    x = torch.randn(4, 5)
    got = LinearMap("weight", "bias").features(x, constant=True)
    assert torch.equal(got, torch.cat([x, torch.ones(4, 1)], 1))
    assert torch.equal(LinearMap("weight").features(x), x)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 4), (3, 2, 4, 5)])
def test_weights_are_the_inverse_of_the_matrix(shape, constant):
    each = LinearMap("weight", "bias" if constant else None, shape[2:])
    weight, bias = torch.randn(7, *shape), torch.randn(7, 3) if constant else None
    matrix = each.matrix(weight, bias)
    fan_in = weight[0, 0].numel()
    assert matrix.shape == (7, fan_in + constant, 3)
    got = each.weights(matrix, weight.shape[1:], constant=constant)
    assert torch.equal(got[0], weight)
    assert got[1] is None if bias is None else torch.equal(got[1], bias)


@pytest.mark.parametrize("name", ["linear of sequences", "conv1d", "conv2d with all options"])
def test_features_are_differentiable_and_run_under_vmap(name):
    layer, shape = built(name)
    x = torch.randn(3, *shape).double()
    each = only_map(layer, x[0])
    got = torch.vmap(lambda one: each.features(one, constant=True))(x)
    for alone, want in zip(x, got, strict=True):
        assert torch.equal(each.features(alone, constant=True), want)
    torch.autograd.gradcheck(each.features, x[0].requires_grad_())


# --- which weights are maps


class Net(nn.Module):
    """Weights by name, used as `call(self, x)` says."""

    def __init__(self, call, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.call = call
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


X, IMAGES = torch.randn(2, 4), torch.randn(2, 1, 5, 5)
COMPUTED = "it is no plain weight of a linear map: computed of others, or itself the input"
TWICE = "it is used in two different ways"
SHARED = "its bias has another use"


def used_by(operation: str) -> str:
    return f"`{operation}` uses it, which is no linear or conv1d/2d"


def found(call, example: Tensor = X, **shapes: tuple[int, ...]) -> Roles:
    net = Net(call, **shapes)
    result = roles(net, example)
    mapped = {name for each in result.maps for name in (each.weight, each.bias) if name}
    assert mapped | set(result.others) == set(shapes)  # every weight that is read, once
    assert not mapped & set(result.others)
    return result


def test_every_weight_of_a_perceptron_is_a_map():
    result = roles(NETS["mlp"].model(), NETS["mlp"].inputs(2))
    assert result.maps == tuple(LinearMap(f"{i}.weight", f"{i}.bias") for i in (0, 2, 4))
    assert result.others == {}


def test_norms_are_no_maps():
    result = roles(NETS["cnn"].model(), NETS["cnn"].inputs(2))
    one = (1, 1)
    assert result.maps == (
        LinearMap("0.weight", None, (3, 3), one, (one, one), one),
        LinearMap("5.weight", "5.bias"),
    )
    assert result.others == dict.fromkeys(("1.weight", "1.bias"), used_by("batch_norm"))


def test_attention_is_no_map_and_what_surrounds_it_is():
    result = roles(NETS["transformer"].model(), NETS["transformer"].inputs(2))
    layer = "encoder.layers.0."
    names = ["embed", f"{layer}linear1", f"{layer}linear2", "head"]
    assert result.maps == tuple(LinearMap(f"{each}.weight", f"{each}.bias") for each in names)
    attention = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    norms = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"]
    assert result.others == {
        **{f"{layer}self_attn.{n}": used_by("multi_head_attention_forward") for n in attention},
        **{f"{layer}{n}": used_by("layer_norm") for n in norms},
    }


def test_recurrent_weights_are_no_maps():
    result = roles(NETS["lstm"].model(), NETS["lstm"].inputs(2))
    assert result.maps == (LinearMap("head.weight", "head.bias"),)
    assert result.others == {
        f"lstm.{kind}_{where}_l0": used_by("lstm")
        for kind in ("weight", "bias")
        for where in ("ih", "hh")
    }


def test_a_weight_that_also_embeds_is_no_map():
    result = roles(NETS["tied"].model(), NETS["tied"].inputs(2))
    assert result.maps == (LinearMap("mix.weight", "mix.bias"),)
    assert result.others == {"embed.weight": used_by("embedding")}


def test_the_bias_of_a_weight_with_another_use_is_named_too():
    result = found(lambda net, x: F.linear(x, net.w, net.b) * net.w.norm(), w=(3, 4), b=(3,))
    assert result.maps == ()
    assert result.others == {"w": used_by("norm"), "b": "its weight has another use"}


def test_grouped_convolutions_are_no_maps():
    result = roles(nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5))
    reason = "it is a convolution in 2 groups, which is no single regression"
    assert result == Roles((), {"weight": reason, "bias": reason})


def test_convolutions_of_other_kinds_are_no_maps():
    result = roles(nn.Conv3d(1, 2, 2), torch.randn(2, 1, 3, 3, 3))
    assert result == Roles((), dict.fromkeys(("weight", "bias"), used_by("conv3d")))
    result = roles(nn.ConvTranspose2d(1, 2, 2), IMAGES)
    assert result == Roles((), dict.fromkeys(("weight", "bias"), used_by("conv_transpose2d")))


def test_a_convolution_of_one_image_is_no_map():
    reason = "its convolution has no batch axis"
    assert roles(nn.Conv2d(1, 2, 3), IMAGES[0]) == Roles((), {"weight": reason, "bias": reason})


def test_a_layer_used_twice_in_the_same_way_is_one_map():
    result = found(
        lambda net, x: F.linear(F.linear(x, net.w, net.b).tanh(), net.w, net.b), w=(4, 4), b=(4,)
    )
    assert result == Roles((LinearMap("w", "b"),), {})


def test_a_layer_used_twice_in_different_ways_is_none():
    result = found(
        lambda net, x: F.linear(F.linear(x, net.w, net.b), net.w, net.c),
        w=(4, 4),
        b=(4,),
        c=(4,),
    )
    assert result == Roles((), {"w": TWICE, "b": TWICE, "c": TWICE})
    result = found(
        lambda net, x: F.conv2d(x, net.w, padding=1) + F.conv2d(x, net.w, padding=2, dilation=2),
        IMAGES,
        w=(2, 1, 3, 3),
    )
    assert result == Roles((), {"w": TWICE})


def test_a_weight_that_is_also_transposed_is_none():
    result = found(lambda net, x: F.linear(x, net.w) @ net.w, w=(3, 4))
    assert result == Roles((), {"w": used_by("matmul")})


def test_a_bias_that_two_layers_share_takes_both_with_it():
    result = found(
        lambda net, x: F.linear(F.linear(x, net.v, net.b), net.w, net.b), v=(4, 4), w=(4, 4), b=(4,)
    )
    assert result == Roles((), {"v": SHARED, "b": SHARED, "w": SHARED})


def test_a_bias_that_is_also_added_takes_its_weight_with_it():
    result = found(lambda net, x: F.linear(x, net.w, net.b) + net.b, w=(3, 4), b=(3,))
    assert result == Roles((), {"b": used_by("add"), "w": SHARED})


def test_a_bias_alone_is_none_and_leaves_the_weight_a_map():
    result = found(lambda net, x: F.linear(x, net.w) + net.b, w=(3, 4), b=(3,))
    assert result == Roles((LinearMap("w"),), {"b": used_by("add")})


def test_weights_without_a_module_of_their_own_are_maps():
    result = found(lambda net, x: F.linear(x, net.w, net.b), w=(3, 4), b=(3,))
    assert result == Roles((LinearMap("w", "b"),), {})
    by_keyword = found(lambda net, x: F.linear(input=x, weight=net.w, bias=net.b), w=(3, 4), b=(3,))
    assert by_keyword == result


def test_convolutions_are_found_however_they_are_called():
    shapes = {"w": (2, 1, 3, 3), "b": (2,)}
    calls = [
        lambda net, x: F.conv2d(x, net.w, net.b, 2, 1, 2),
        lambda net, x: F.conv2d(x, net.w, net.b, stride=2, padding=(1, 1), dilation=[2]),
        lambda net, x: F.conv2d(
            input=x, weight=net.w, bias=net.b, stride=2, padding=1, dilation=2, groups=1
        ),
    ]
    two, padding = (2, 2), ((1, 1), (1, 1))
    want = Roles((LinearMap("w", "b", (3, 3), two, padding, two),), {})
    assert [found(call, IMAGES, **shapes) for call in calls] == [want] * 3


@pytest.mark.parametrize("transposed", [Tensor.t, lambda w: w.T, lambda w: w.transpose(0, 1)])
def test_a_transposed_weight_is_no_map(transposed):
    result = found(lambda net, x: x @ transposed(net.w), w=(3, 4))
    assert result.maps == ()
    (reason,) = result.others.values()
    assert reason.endswith("uses it, which is no linear or conv1d/2d")


def test_a_weight_as_the_input_is_no_map():
    result = found(lambda net, x: F.linear(net.v, net.w) + x.sum(), v=(2, 4), w=(3, 4))
    assert result == Roles((), {"v": COMPUTED, "w": COMPUTED})


def test_a_bias_that_is_computed_leaves_no_map():
    result = found(lambda net, x: F.linear(x, net.w, 2 * net.b), w=(3, 4), b=(3,))
    assert result.maps == ()
    assert result.others == {"b": used_by("mul"), "w": "its bias is computed of other tensors"}


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(1, 2, 3)], ids=["linear", "conv"])
def test_normalised_weights_are_no_maps(layer):
    net = nn.utils.parametrizations.weight_norm(layer)
    result = roles(net, X if isinstance(layer, nn.Linear) else IMAGES)
    parts = [f"parametrizations.weight.original{i}" for i in (0, 1)]
    assert result.maps == ()
    assert result.others == {**dict.fromkeys(parts, used_by("_weight_norm")), "bias": COMPUTED}


def test_a_reflecting_convolution_is_a_map_of_the_input_that_it_padded():
    layer = nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")
    each = only_map(layer, IMAGES)
    assert each.padding == ((0, 0), (0, 0))
    padded = F.pad(IMAGES, (1, 1, 1, 1), "reflect")
    matrix = each.matrix(layer.weight.detach()[None], layer.bias.detach()[None])[0]
    z = each.features(padded, constant=True) @ matrix
    torch.testing.assert_close(z, each.rows(layer(IMAGES).detach()))


def test_weights_that_the_pass_does_not_read_have_no_role():
    net = Net(lambda net, x: F.linear(x, net.w), w=(3, 4), spare=(2, 2))
    assert roles(net, X) == Roles((LinearMap("w"),), {})


def test_asking_for_facts_is_no_use():
    result = found(
        lambda net, x: F.linear(x, net.w)[:, : net.w.shape[0]] * len(net.w) / net.w.numel(),
        w=(3, 4),
    )
    assert result == Roles((LinearMap("w"),), {})


def test_maps_come_in_order_of_execution():
    net = Net(lambda net, x: F.linear(F.linear(x, net.first), net.last), last=(3, 5), first=(5, 4))
    assert [each.weight for each in roles(net, X).maps] == ["first", "last"]


def test_looking_leaves_mode_and_statistics_alone():
    model = NETS["cnn"].model()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    roles(model, NETS["cnn"].inputs(2))
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_inputs_may_be_named():
    result = roles(NETS["mapping"].model(), NETS["mapping"].inputs(2))
    assert result.maps == (LinearMap("head.weight", "head.bias"),)
    assert result.others == {"embed.weight": used_by("embedding")}
