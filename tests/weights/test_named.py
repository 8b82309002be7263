import pytest
import torch
from torch import nn

from bayesify.core.errors import UnsupportedModelError
from bayesify.weights.named import (
    assign_,
    buffers_of,
    copied,
    count,
    stacked,
    weights_of,
)
from zoo import NETS


def test_weights_are_the_models_own_memory_without_gradients():
    model = nn.Linear(3, 2)
    weights = weights_of(model)
    assert list(weights) == ["weight", "bias"]
    assert not weights["weight"].requires_grad
    weights["bias"].fill_(7)
    assert model.bias.tolist() == [7, 7]


def test_a_tied_weight_appears_once():
    assert list(weights_of(NETS["tied"].model())) == ["embed.weight", "mix.weight", "mix.bias"]


def test_buffers_are_apart_from_weights():
    held = buffers_of(NETS["cnn"].model())
    assert list(held) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_a_model_without_weights_and_one_without_shapes_are_refused():
    with pytest.raises(UnsupportedModelError, match="ReLU has no parameters"):
        weights_of(nn.ReLU())
    with pytest.raises(UnsupportedModelError, match=r"`0.weight` of Sequential has no shape yet"):
        weights_of(nn.Sequential(nn.LazyLinear(3)))


def test_copies_share_nothing():
    weights = weights_of(nn.Linear(3, 2))
    twin = copied(weights)
    twin["weight"].zero_()
    assert weights["weight"].abs().sum() > 0


def test_stacking_puts_members_first():
    members = [weights_of(nn.Linear(3, 2)) for _ in range(4)]
    stack = stacked(members)
    assert stack["weight"].shape == (4, 2, 3)
    assert torch.equal(stack["weight"][2], members[2]["weight"])


def test_sizes():
    weights = weights_of(nn.Linear(3, 2).double())
    assert count(weights) == 8


def test_assigning_writes_weights_and_buffers_in_place():
    model, other = NETS["cnn"].model(0), NETS["cnn"].model(1)
    other[1].running_mean.fill_(3)
    other[1].num_batches_tracked.fill_(5)
    places = [id(each) for each in (*model.parameters(), *model.buffers())]
    assign_(model, weights_of(other) | buffers_of(other))
    assert places == [id(each) for each in (*model.parameters(), *model.buffers())]
    for name, each in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], each)
