import pytest
import torch
from torch import Tensor, nn

from bayesify.core.errors import UnsupportedModelError
from bayesify.tracing.trace import call_arguments, execution_order, trace
from zoo import NETS


class Reversed(nn.Module):
    """Registered last to first; the head is used without calling its module."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.first = nn.Linear(8, 3, bias=False), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x)) @ self.head.weight.T


class TokenFirst(nn.Module):
    """As many vision transformers: a class token is expanded before any patch is embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(3, 4))
        self.embed, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], -1, -1)
        return self.head((torch.cat([token, self.embed(x)], 1) + self.place)[:, 0])


class Filling(nn.Module):
    """Writes activations into a fresh tensor, and into one made of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.ones(1, 4))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        held = torch.zeros(len(x), 4)
        held[:, :2] = x[:, :2]
        begun = self.start.repeat(len(x), 1)
        begun[:, 0] = self.first(held)[:, 0]
        return self.second(begun)


X = torch.randn(2, 4)


@pytest.mark.parametrize("example", [X, None], ids=["run", "traced"])
def test_execution_not_registration_gives_the_order(example):
    assert execution_order(Reversed(), example) == ["first.weight", "first.bias", "head.weight"]


@pytest.mark.parametrize("example", [torch.randn(2, 2, 5), None], ids=["run", "traced"])
def test_a_weight_is_read_where_it_meets_the_inputs(example):
    order = execution_order(TokenFirst(), example)
    assert order == ["embed.weight", "embed.bias", "token", "place", "head.weight", "head.bias"]


def test_what_activations_are_written_into_is_an_activation():
    first = ["first.weight", "first.bias"]
    assert execution_order(Filling(), X) == [*first, "second.weight", "second.bias"]


@pytest.mark.parametrize("example", [X, None], ids=["run", "traced"])
def test_a_normalised_weight_stands_for_its_parts(example):
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    parts = {f"0.parametrizations.weight.original{i}" for i in (0, 1)}
    order = execution_order(net, example)
    assert {*order[:3]} == {*parts, "0.bias"}
    assert order[3:] == ["1.weight", "1.bias"]


def test_a_tied_weight_comes_as_often_as_it_is_read():
    order = execution_order(NETS["tied"].model(), NETS["tied"].inputs(2))
    assert order == ["embed.weight", "mix.weight", "mix.bias", "embed.weight"]


@pytest.mark.parametrize("net", NETS)
def test_every_weight_of_every_net_is_read(net):
    model = NETS[net].model()
    order = execution_order(model, NETS[net].inputs(2))
    assert set(order) == {name for name, _ in model.named_parameters()}


def test_tracing_leaves_mode_statistics_and_gradients_alone():
    model = NETS["cnn"].model()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    trace(model, NETS["cnn"].inputs(2))
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_bytes_are_those_of_new_activations():
    uses = trace(nn.Sequential(nn.Linear(4, 8), nn.Flatten(), nn.Linear(8, 3)), X)
    assert [(use.names, use.result_bytes) for use in uses if use.result_bytes] == [
        (("0.weight", "0.bias"), 2 * 8 * 4),
        (("2.weight", "2.bias"), 2 * 3 * 4),
    ]


def test_what_cannot_be_traced_asks_for_an_example():
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(UnsupportedModelError, match=r"Branching .* pass `example=`"):
        execution_order(Branching(4, 3))
    assert execution_order(Branching(4, 3), X) == ["weight", "bias"]


def test_weights_made_in_inference_mode_can_be_traced():
    with torch.inference_mode():
        model = nn.Linear(4, 3)
    assert execution_order(model, X) == ["weight", "bias"]


def test_inputs_become_arguments():
    assert call_arguments(X) == ((X,), {})
    assert call_arguments((X, 1)) == ((X, 1), {})
    assert call_arguments({"ids": X}) == ((), {"ids": X})
