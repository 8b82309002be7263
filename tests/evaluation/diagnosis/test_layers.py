import numpy as np
import pytest
import torch
from torch import nn

from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.evaluation.diagnosis.layers import (
    layers_of,
    redrawable_layers,
    selector_of,
    varying_inputs,
)
from zoo import TiedNet


class Backwards(nn.Module):
    """Registers its layers in the other order than it runs them."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(3)
        self.first = nn.Linear(4, 3)
        self.unused = nn.Linear(5, 5)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


class Undrawable(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(4, 2))

    def forward(self, x):
        return x @ self.matrix


def test_layers_come_in_the_order_in_which_they_run():
    want = {
        "first": ["first.weight", "first.bias"],
        "norm": ["norm.weight", "norm.bias"],
        "last": ["last.weight", "last.bias"],
    }
    found = layers_of(Backwards(), torch.ones(2, 4))
    assert found == want
    assert list(found) == list(want)


def test_norms_are_left_out_unless_they_are_named():
    model, example = Backwards(), torch.ones(2, 4)
    assert list(redrawable_layers(model, None, example)) == ["first", "last"]
    assert list(redrawable_layers(model, ["last", "norm"], example)) == ["norm", "last"]


def test_one_name_need_not_be_a_list():
    assert list(redrawable_layers(Backwards(), "first", torch.ones(2, 4))) == ["first"]


def test_a_tied_weight_belongs_to_its_first_owner():
    found = redrawable_layers(TiedNet(), None, torch.zeros(2, 3, dtype=torch.int64))
    assert found == {"embed": ["embed.weight"], "mix": ["mix.weight", "mix.bias"]}


def test_the_model_itself_may_be_the_layer():
    assert redrawable_layers(nn.Linear(2, 1)) == {"": ["weight", "bias"]}


def test_an_unknown_layer_is_refused_with_names_that_are_near():
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(OptionError, match=r"'conv1' is no module .* names like '0'"):
        redrawable_layers(model, ["conv1"])
    with pytest.raises(OptionError, match=r"'firts' .* names like 'first'"):
        redrawable_layers(Backwards(), ["firts"], torch.ones(2, 4))
    with pytest.raises(OptionError, match="'unused' is no module whose own weights"):
        redrawable_layers(Backwards(), ["unused"], torch.ones(2, 4))
    with pytest.raises(OptionError, match="expected one name at least"):
        redrawable_layers(model, [])


def test_a_layer_that_cannot_draw_its_weights_is_left_out_or_refused():
    both = nn.Sequential(Undrawable(), nn.Linear(2, 2))
    assert list(redrawable_layers(both, None, torch.ones(2, 4))) == ["1"]
    with pytest.raises(UnsupportedModelError, match=r"`0` .* no `reset_parameters"):
        redrawable_layers(both, ["0"], torch.ones(2, 4))
    with pytest.raises(UnsupportedModelError, match="no layer that owns a matrix"):
        redrawable_layers(Undrawable(), None, torch.ones(2, 4))


def test_a_pattern_selects_a_layer_or_its_weights_are_named():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    pairs = layers_of(model, torch.randn(2, 3, 8))
    for layer, names in pairs.items():
        assert selector_of(model, layer, names)(model) == names
    assert selector_of(model, "linear1", pairs["linear1"]).patterns == ("linear1.*",)
    inner = pairs["self_attn"]  # out_proj lies inside, a layer of its own
    assert selector_of(model, "self_attn", inner).patterns == tuple(inner)


def test_varying_inputs_are_those_with_a_range():
    x = torch.randn(30, 5)
    x[:, 1], x[:, 3] = 0.0, 0.7
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[0].bias[2] = -100.0  # a dead unit
    chosen = redrawable_layers(model)
    found = varying_inputs(model, chosen, x.split(7))
    hidden = model[:2](x).detach().numpy()
    assert found["0"].tolist() == [True, False, True, False, True]
    assert found["2"].tolist() == (np.ptp(hidden, axis=0) > 0).tolist()
    assert not found["2"][2]


def test_all_positions_count_as_examples():
    x = torch.ones(4, 3, 2)
    x[0, 1, 1] = 5.0  # one token of one example
    assert varying_inputs(nn.Linear(2, 2), {"": []}, [x])[""].tolist() == [False, True]


def test_other_layers_and_shared_weights_have_no_entry():
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    assert varying_inputs(conv, redrawable_layers(conv), [torch.ones(2, 1, 4, 4)]) == {}
    tied, ids = TiedNet().eval(), torch.tensor([[0, 1], [1, 2]])
    assert list(varying_inputs(tied, {"score": [], "mix": []}, [ids])) == ["mix"]


def test_no_hook_stays_behind():
    model = nn.Sequential(nn.Linear(3, 2))
    varying_inputs(model, redrawable_layers(model), [torch.ones(2, 3)])
    with pytest.raises(RuntimeError, match="shape"):
        varying_inputs(model, redrawable_layers(model), [torch.ones(2, 4)])
    assert not model[0]._forward_pre_hooks
