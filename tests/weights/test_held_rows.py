"""Padding rows of embeddings: the truth is that padding changes no prediction, whatever the law."""

import pytest
import torch
from torch import Tensor, nn

from bayesify import (
    BALI,
    MAP,
    STF,
    SWAG,
    Bella,
    DiagonalLaplace,
    Ensemble,
    Laplace,
    MeanFieldVI,
    WeightSharing,
    fit,
    load,
    matching,
    save,
)
from bayesify.weights.held_rows import held_rows

IDS = torch.randint(1, 12, (60, 6), generator=torch.Generator().manual_seed(0))
PADDED = torch.cat([IDS, torch.zeros(60, 3, dtype=torch.long)], dim=1)
LABELS = (IDS < 6).sum(1).gt(2).long()


class Text(nn.Module):
    """A sum over words, to which padding adds `row`, as often as there is padding."""

    def __init__(self, row: float = 0.0, bag: bool = False) -> None:
        super().__init__()
        table = nn.EmbeddingBag(12, 4, padding_idx=0, mode="sum") if bag else None
        self.table = table or nn.Embedding(12, 4, padding_idx=0)
        self.head = nn.Linear(4, 2)
        self.bag = bag
        with torch.no_grad():
            self.table.weight[0] = row

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids) if self.bag else self.table(ids).sum(1))


METHODS = [
    MAP(epochs=2),
    Ensemble(members=2, epochs=1),
    STF(pretrain=None, epochs=1),
    DiagonalLaplace(pretrain=None, factor=1.0),
    Laplace(pretrain=None, where=matching("table.*"), structure="full"),
    MeanFieldVI(pretrain=None, epochs=1),
    WeightSharing(pretrain=None, codes=8),
    SWAG(pretrain=None, burn_in=1, epochs=3, lr=0.1),
    Bella(pretrain=None, members=3, rank=1, epochs=1, noise=1.0),
    BALI(pretrain=None, epochs=1, rest="all"),
]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch, for bags
@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda each: type(each).__name__)
def test_padding_changes_no_prediction(method, bag, tmp_path):
    net = Text(bag=bag)
    posterior = fit(net, (PADDED, LABELS), method, validation=(PADDED[:20], LABELS[:20]))
    padded, plain = (posterior.outputs(each, num_samples=4) for each in (PADDED, IDS))
    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-5)
    again = load(save(posterior, tmp_path / "saved"), Text(row=3.0, bag=bag))
    assert torch.equal(again.outputs(PADDED, num_samples=4), padded)


@pytest.mark.parametrize("method", METHODS, ids=lambda each: type(each).__name__)
def test_a_row_that_is_not_zero_stays_and_comes_back(method, tmp_path):
    """Three more paddings add 3 times the row, exactly, under every weight sample."""
    net = Text(row=0.5)
    posterior = fit(net, (PADDED, LABELS), method, validation=(PADDED[:20], LABELS[:20]))
    assert (posterior.model.table.weight[0] == 0.5).all()
    again = load(save(posterior, tmp_path / "saved"), Text())
    want = posterior.outputs(PADDED, num_samples=4)
    assert torch.equal(again.outputs(PADDED, num_samples=4), want)


def test_a_table_that_a_head_reads_too_has_no_such_row():
    net = Text()
    assert list(held_rows(net)) == ["table.weight"]
    net.head = nn.Linear(4, 12, bias=False)
    net.head.weight = net.table.weight
    assert held_rows(net) == {}


def test_noise_of_each_example_leaves_the_row_too():
    """In training, where weights are structured."""
    from bayesify.distributions import MeanField
    from bayesify.forward.outputs import local_outputs

    net = Text(row=0.5)
    q = MeanField.around(net, where=matching("table.*"), scale=1.0)
    only = torch.zeros(5, 3, dtype=torch.long)
    want = net(only).detach()
    torch.testing.assert_close(local_outputs(net, q, only)[0].detach(), want)
