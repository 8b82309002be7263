"""Wrapped networks give what the network inside gives, or one sentence."""

import pytest
import torch
from torch import nn

from bayesify import MAP, Bella, fit, load, save
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.wrappers import unwrap_parts_, unwrapped

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def compiled_part():
    model = net()
    model[0] = torch.compile(model[0], backend="eager")
    return model


WRAPPED = {
    "DataParallel": lambda: nn.DataParallel(net()),
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "compiled part": compiled_part,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_network_inside_is_fitted_and_the_wrapper_stays(name, tmp_path):
    method = Bella(pretrain=MAP(epochs=1), members=2, epochs=1)
    want = fit(net(), (X, Y), method).outputs(X)
    wrapped = WRAPPED[name]()
    kinds = [type(each) for each in wrapped.modules()]
    posterior = fit(wrapped, (X, Y), method)
    assert torch.equal(posterior.outputs(X), want)
    assert [type(each) for each in wrapped.modules()] == kinds
    again = load(save(posterior, tmp_path / "p"), wrapped)
    assert torch.equal(again.outputs(X), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_script_is_refused_also_as_a_part():
    scripted = torch.jit.script(net())
    for model in (scripted, torch.jit.trace(net(), X[:2]), nn.Sequential(scripted)):
        with pytest.raises(UnsupportedModelError, match="TorchScript"):
            fit(model, (X, Y), MAP(epochs=1))


def test_wrappers_within_wrappers_come_off():
    inner = net()
    assert unwrapped(nn.DataParallel(nn.DataParallel(inner))) is inner
    outer = unwrap_parts_(nn.Sequential(nn.DataParallel(inner)))
    assert outer[0] is inner
