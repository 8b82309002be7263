"""What cannot be trained says so before the first step, in words."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesify import MAP, SWAG, Callback, Ensemble, fit, recalibrated
from bayesify.core.errors import DataError, UnsupportedModelError

X = torch.randn(33, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Counting(Callback):
    def __init__(self):
        self.steps = 0

    def on_step(self, log):
        self.steps += 1


def normed():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


LAST_OF_ONE = DataLoader(TensorDataset(X, Y), 16)


@pytest.mark.parametrize(
    "method", [MAP(epochs=1), Ensemble(members=2, epochs=1), SWAG(pretrain=None, burn_in=1)]
)
def test_a_batch_of_one_example_is_tried_first(method):
    watcher = Counting()
    with pytest.raises(UnsupportedModelError, match="smallest batch holds one example"):
        fit(normed(), LAST_OF_ONE, method, callbacks=[watcher])
    assert watcher.steps == 0


def test_recalibration_on_a_batch_of_one_is_told():
    posterior = fit(normed(), (X, Y), MAP(epochs=1))
    with pytest.raises(DataError, match="no batch be so small"):
        recalibrated(posterior, LAST_OF_ONE)


class Looked(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table, self.head = table, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.table((x > 0).long().sum(1)))


class Multiplied(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=weight.is_complex())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head((x.to(self.weight.dtype) @ self.weight).abs().float())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Looked(nn.Embedding(5, 4, sparse=True)), "`table` gives sparse gradients"),
        (Multiplied(torch.randn(4, 4, dtype=torch.complex64)), "`weight` is complex"),
        (Multiplied(torch.ones(4, 4, dtype=torch.int8)), "`weight` holds integers"),
    ],
)
def test_weights_that_cannot_be_trained_are_named(model, said):
    with pytest.raises(UnsupportedModelError, match=said):
        fit(model, (X, Y), MAP(epochs=1))


def test_the_rehearsal_changes_nothing_of_the_fit(monkeypatch):
    """A step draws random numbers and moves weights; the training is as it is without."""

    def fitted():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        return fit(net, (X, Y), MAP(epochs=2)).outputs(X)

    rehearsed = fitted()
    monkeypatch.setattr("bayesify.training.fit.step_on_smallest", lambda run, problem: None)
    assert torch.equal(rehearsed, fitted())
