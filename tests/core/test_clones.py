"""Copies compute what the original does, whatever it holds on to."""

import threading

import pytest
import torch
from torch import nn

from bayesify import MAP, MeanFieldVI, fit, load, save
from bayesify.core.clones import clone
from bayesify.core.errors import UnsupportedModelError

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Keeping(nn.Module):
    """Remembers its activations."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.kept = []
        self.layer.register_forward_hook(self.keep)

    def keep(self, module, args, output):
        self.kept = [output]

    def forward(self, x):
        return self.head(self.layer(x).relu())


def normed(norm):
    return nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))


MADE = {
    "activations": Keeping,
    "weight_norm": lambda: normed(nn.utils.weight_norm),
    "spectral_norm": lambda: normed(nn.utils.spectral_norm),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:There is a performance drop")
@pytest.mark.parametrize("name", MADE)
def test_a_network_that_holds_a_graph_is_copied_fitted_saved_and_loaded(name, tmp_path):
    net = MADE[name]()
    net(X)  # with gradients: torch refuses to copy what this leaves behind
    with pytest.raises(RuntimeError, match="deepcopy"):
        __import__("copy").deepcopy(net)
    net.eval()
    torch.testing.assert_close(clone(net)(X), net(X), rtol=0, atol=0)
    posterior = fit(net, (X, Y), MeanFieldVI(pretrain=MAP(epochs=1), epochs=1))
    want = posterior.outputs(X, num_samples=4)
    again = load(save(posterior, tmp_path / "p"), net)
    assert torch.equal(again.outputs(X, num_samples=4), want)
    assert torch.equal(clone(posterior).outputs(X, num_samples=4), want)


def test_what_torch_vmap_leaves_behind_is_copied():
    net = Keeping()
    torch.vmap(net)(X[None])
    assert clone(net).kept[0].shape == (1, 24, 6)


def test_a_network_that_cannot_be_copied_is_said_to_be_so(tmp_path):
    net = nn.Linear(4, 2)
    saved = save(fit(net, (X, Y), MAP(epochs=1)), tmp_path / "p")
    net.lock = threading.Lock()
    for attempt in (lambda: fit(net, (X, Y), MAP(epochs=1)), lambda: load(saved, net)):
        with pytest.raises(UnsupportedModelError, match="a deep copy of Linear fails"):
            attempt()
