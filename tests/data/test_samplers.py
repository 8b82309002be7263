"""N against Bayesian linear regression on what every form of loader gives."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from bayesify import BALI, MAP, DiagonalLaplace, Gaussian, Laplace, MeanFieldVI, evaluate, fit
from bayesify.core.errors import DataError
from bayesify.data.loading import as_loader
from bayesify.data.samplers import check_one_process, different, known_indices, num_data

TOTAL, PART, NOISE = 240, 48, 0.5
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(TOTAL, 2, generator=GENERATOR) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]])
Y = X @ torch.tensor([1.0, -0.5]) + NOISE * torch.randn(TOTAL, generator=GENERATOR)
DATA = TensorDataset(X, Y)
CHOSEN = list(range(0, TOTAL, TOTAL // PART))


class Stream(IterableDataset):
    def __len__(self):
        return PART

    def __iter__(self):
        return iter([(X[i], Y[i]) for i in CHOSEN])


class WholeBatches(Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return PART // self.size

    def __getitem__(self, i):
        rows = CHOSEN[self.size * i : self.size * (i + 1)]
        return X[rows], Y[rows]


def only_chosen() -> Tensor:
    weights = torch.zeros(TOTAL)
    weights[CHOSEN] = 1
    return weights


def batches(size: int) -> BatchSampler:
    return BatchSampler(SubsetRandomSampler(CHOSEN), size, drop_last=False)


def longer(size: int) -> TensorDataset:
    """The chosen and a rest that is no whole batch."""
    index = CHOSEN + list(range(1, size))
    return TensorDataset(X[index], Y[index])


LOADERS = {
    "subset": lambda size: DataLoader(DATA, size, sampler=SubsetRandomSampler(CHOSEN)),
    "list": lambda size: DataLoader(DATA, size, sampler=CHOSEN),
    "batch sampler": lambda size: DataLoader(DATA, batch_sampler=batches(size)),
    "own batch sampler": lambda size: DataLoader(DATA, batch_sampler=list(batches(size))),
    "batches by one index": lambda size: DataLoader(DATA, None, sampler=batches(size)),
    "whole batches": lambda size: DataLoader(WholeBatches(size), batch_size=None),
    "stream": lambda size: DataLoader(Stream(), size),
    "bare stream": lambda size: Stream(),
    "drop_last": lambda size: DataLoader(longer(size), size, drop_last=True),
    "weighted": lambda size: DataLoader(
        DATA, size, sampler=WeightedRandomSampler(only_chosen(), PART)
    ),
    "num_samples": lambda size: DataLoader(
        DATA, size, sampler=RandomSampler(DATA, num_samples=PART)
    ),
}
"""Forms whose passes give PART of TOTAL examples, by their batch size."""


class Noted(nn.Module):
    """A linear network that remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        nn.init.constant_(self.layer.weight, 0.7)
        nn.init.constant_(self.layer.bias, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Noting:
    """Joins examples, and remembers the inputs of all of them."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, examples):
        x, y = default_collate(examples)
        self.seen += x
        return x, y


def exact(x: Tensor) -> Tensor:
    """Precision of weights and bias, under a standard normal prior."""
    phi = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    return torch.eye(3).double() + phi.T @ phi / NOISE**2


def sd_of(name: str, posterior) -> Tensor:
    if name == "Laplace":
        return posterior.q.covariance.double().diagonal().sqrt()
    if name == "BALI":
        row, column = (
            each.named()["layer.weight"][0].detach().double()
            for each in (posterior.q.row, posterior.q.column)
        )
        return (column.square() * torch.cholesky_inverse(row)).diagonal().sqrt()
    return torch.cat([each.detach().double().flatten() for each in posterior.q.scale.values()])


METHODS = {
    "Laplace": (Laplace(pretrain=None, structure="full", prior_precision=1.0), 16, 0.02),
    "DiagonalLaplace": (
        DiagonalLaplace(
            pretrain=None, factor=1.0, labels=800, prior_scale=1.0, prior_relative=False
        ),
        PART,
        0.02,
    ),
    "BALI": (
        BALI(
            prior_precision=NOISE**2,  # the conjugate prior is N(0, noise variance / tau)
            temperature=1.0,
            rate=1.0,
            forward_noise=False,
            final_rate=1.0,
            warmup=0,
            cap=1e12,
            epochs=1,
            min_steps=1,
        ),
        PART,  # one step that forgets everything
        0.02,
    ),
    "MeanFieldVI": (
        MeanFieldVI(
            pretrain=None,
            epochs=800,
            lr=0.01,
            scale_lr=0.01,
            initial_scale=0.2,
            prior_scale=1.0,
            prior_relative=False,
            prior_loc="zero",
            temperature=1.0,
        ),
        PART,
        0.05,
    ),
}


SLOW = ("DiagonalLaplace", "MeanFieldVI")
SOME = ("subset", "own batch sampler", "weighted")


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in METHODS for form in (SOME if name in SLOW else LOADERS)],
)
def test_the_posterior_is_that_of_what_a_pass_gives(name, form):
    """Bayesian linear regression; of mean-field VI the optimum is 1 / sqrt(precision_ii)."""
    method, size, tolerance = METHODS[name]
    data, noting = LOADERS[form](size), Noting()
    if isinstance(data, DataLoader) and data.batch_sampler is not None:
        data.collate_fn = noting
    posterior = fit(Noted(), data, method, likelihood=Gaussian(NOISE), batch_size=size)
    assert posterior.record.num_data == PART
    # the last batch is of the look at what has been fitted
    x = torch.stack(noting.seen[-PART - size : -size]) if noting.seen else X[CHOSEN]
    if name == "MeanFieldVI" and form in ("weighted", "num_samples"):  # of all passes
        everything = torch.stack(noting.seen)
        precision = torch.eye(3).double()
        precision += (exact(everything) - precision) * PART / len(everything)
    else:
        precision = exact(x)
    full = name in ("Laplace", "BALI")
    variance = torch.linalg.inv(precision).diagonal() if full else 1 / precision.diagonal()
    got = sd_of(name, posterior) / variance.sqrt()
    assert (got - 1).abs().max() < tolerance, got


def test_examples_that_a_pass_repeats_are_no_new_ones():
    twice = RandomSampler(DATA, replacement=True, num_samples=2 * TOTAL)
    posterior = fit(
        Noted(), DataLoader(DATA, 32, sampler=twice), MAP(epochs=1), likelihood="gaussian"
    )
    assert posterior.record.num_data == TOTAL
    repeated = [[0, 1, 2], [2, 1, 0]]
    few = TensorDataset(X[:3], Y[:3])
    assert num_data(DataLoader(few, batch_sampler=repeated), 6) == 3


def test_a_stream_that_every_worker_gives_whole_is_refused():
    loader = DataLoader(Stream(), 16, num_workers=2)
    with pytest.raises(DataError, match="each of the 2 workers gives all of them"):
        num_data(loader, 2 * PART)
    assert num_data(loader, PART) == PART


def test_a_stream_that_can_be_read_once_is_told():
    class Once(Stream):
        def __init__(self):
            self.rows = super().__iter__()

        def __iter__(self):
            return self.rows

    with pytest.raises(DataError, match="read again and again"):
        fit(Noted(), Once(), MAP(epochs=1), likelihood="gaussian")


def test_known_are_the_examples_that_passes_may_give():
    for form in ("subset", "list", "batch sampler", "own batch sampler", "weighted"):
        assert list(known_indices(LOADERS[form](16))) == CHOSEN, form
    assert len(known_indices(LOADERS["num_samples"](16))) == TOTAL
    assert known_indices(LOADERS["stream"](16)) is None


def test_passes_that_leave_examples_out_give_all_in_the_end():
    assert different(DataLoader(DATA, 50, shuffle=True, drop_last=True), 200) == TOTAL
    assert different(LOADERS["subset"](16), PART) == PART
    assert different(LOADERS["whole batches"](16), PART) == PART
    assert different(as_loader((X, Y), batch_size=7, shuffle=True), TOTAL) == TOTAL


def test_a_share_of_several_is_refused():
    shared = DistributedSampler(DATA, num_replicas=2, rank=0)
    for loader in (
        DataLoader(DATA, 16, sampler=shared),
        DataLoader(DATA, batch_sampler=BatchSampler(shared, 16, drop_last=False)),
    ):
        with pytest.raises(DataError, match="one process that sees all data, got 2"):
            fit(Noted(), loader, MAP(epochs=1), likelihood="gaussian")
    check_one_process(DataLoader(DATA, sampler=DistributedSampler(DATA, num_replicas=1, rank=0)))


def test_a_process_among_several_is_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    with pytest.raises(DataError, match=r"got 4 that share them.*Fit in one process"):
        fit(Noted(), (X, Y), MAP(epochs=1), likelihood="gaussian")


def test_what_is_judged_is_counted_too():
    posterior = fit(Noted(), (X, Y), MAP(epochs=1), likelihood="gaussian")
    for form, make in LOADERS.items():
        assert len(evaluate(posterior, make(16)).predictions) == PART, form
