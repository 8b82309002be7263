import os
from collections import UserDict

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.data import splits
from bayesify.data.augment import augmented
from bayesify.data.loading import as_loader, evenly_spread, is_augmented, subset
from zoo import Pairs

X, Y = torch.randn(20, 3), torch.arange(20)


def seen(loader: DataLoader) -> torch.Tensor:
    return torch.cat([target for _, target in loader])


def test_a_loader_is_taken_as_it_is():
    loader = DataLoader(TensorDataset(X, Y), batch_size=7)
    assert as_loader(loader, batch_size=3, shuffle=True) is loader


@pytest.mark.parametrize("data", [(X, Y), [X, Y], TensorDataset(X, Y), Pairs(X, Y)])
def test_every_kind_of_data_gives_each_example_once(data):
    loader = as_loader(data, batch_size=8, shuffle=False)
    assert [len(target) for _, target in loader] == [8, 8, 4]
    assert torch.equal(seen(loader), Y)
    for x, y in loader:
        assert torch.equal(x, X[y])
    assert len(loader.dataset) == 20


@pytest.mark.parametrize("data", [(X, Y), Pairs(X, Y)])
def test_shuffling_follows_the_global_generator(data):
    loader = as_loader(data, batch_size=8, shuffle=True)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(seen(loader))
    assert torch.equal(orders[0].sort().values, Y)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("data", [(X[:17], Y[:17]), Pairs(X[:17], Y[:17])])
def test_training_batches_are_of_equal_size_and_hold_every_example_once(data):
    loader = as_loader(data, batch_size=8, shuffle=True)
    assert [len(y) for _, y in loader] == [6, 6, 5]
    assert len(loader) == 3
    assert sorted(seen(loader).tolist()) == list(range(17))
    in_order = as_loader(data, batch_size=8, shuffle=False)
    assert [len(y) for _, y in in_order] == [8, 8, 1]


def test_one_example_alone_is_kept():
    assert len(seen(as_loader((X[:1], Y[:1]), batch_size=8, shuffle=True))) == 1


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ((X, Y[:-1]), ShapeError, "x has 20 examples, but y has 19"),
        ((X[:0], Y[:0]), DataError, "no examples"),
        ((X, Y, Y), DataError, r"\(Tensor, Tensor, Tensor\)"),
        ((X, [1]), DataError, r"got \(Tensor, list\)"),
        (iter([1]), DataError, "no length"),
    ],
)
def test_other_data_are_refused(data, error, said):
    with pytest.raises(error, match=said):
        as_loader(data, batch_size=8, shuffle=True)


def test_a_batch_holds_one_example_at_least():
    with pytest.raises(OptionError, match="batch_size=-1: expected at least 1"):
        as_loader((X, Y), batch_size=-1, shuffle=True)


def test_a_subset_is_of_the_same_kind():
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    index = torch.tensor([4, 1])
    for data in ((x, y), TensorDataset(x, y), Pairs(x, y)):
        loader = as_loader(subset(data, index), batch_size=4, shuffle=False)
        (seen, target) = next(iter(loader))
        assert torch.equal(seen, x[index])
        assert torch.equal(target, y[index])


def test_a_subset_of_a_loader_keeps_its_ways():
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)

    def collate(pairs):
        return torch.stack([2 * a for a, _ in pairs]), torch.stack([b for _, b in pairs])

    loader = DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True, collate_fn=collate)
    part = subset(loader, torch.tensor([0, 3, 5]))
    assert isinstance(part.sampler, RandomSampler)
    batches = list(part)
    assert [len(b) for _, b in batches] == [2, 1]
    rows = {int(t): s for s_, t_ in batches for s, t in zip(s_, t_, strict=True)}
    assert torch.equal(rows[3], 2 * x[3])


def test_no_subset_of_a_loader_with_a_sampler_of_its_own():
    loader = as_loader((torch.zeros(4, 1), torch.zeros(4)), batch_size=2, shuffle=True)
    with pytest.raises(DataError, match="pass a data set of the examples"):
        subset(loader, torch.tensor([0]))


def chosen(data, examples, batch_size=4):
    loader, count = evenly_spread(data, examples, batch_size=batch_size)
    batches = [batch[0] if isinstance(batch, list | tuple) else batch["x"] for batch in loader]
    assert all(len(each) <= batch_size for each in batches)
    assert sum(map(len, batches)) == count
    return torch.cat(batches).flatten().tolist()


def test_examples_are_spread_evenly_whatever_holds_them():
    x = torch.arange(12.0).unsqueeze(1)
    dataset = TensorDataset(x, x)
    want = [0.0, 2.0, 4.0, 7.0, 9.0]
    assert chosen((x, x), 5) == want
    assert chosen(dataset, 5) == want
    assert chosen(DataLoader(dataset, 3, shuffle=True), 5) == want
    assert chosen(as_loader(dataset, batch_size=3, shuffle=True), 5) == want
    for examples in (None, 12, 99):
        assert chosen((x, x), examples) == x.flatten().tolist()


def test_examples_of_a_built_in_data_set_come_as_the_model_sees_them():
    digits = splits("digits")
    loader, count = evenly_spread(digits.test, 10, batch_size=10)
    x, y = next(iter(loader))
    index = torch.arange(10) * len(digits.test) // 10
    assert count == 10
    assert x.equal(digits.test[index.tolist()][0])
    assert y.equal(digits.test.y[index])


def test_a_loader_lends_its_way_to_join_examples_and_its_subset():
    dataset = TensorDataset(torch.arange(8.0).unsqueeze(1), torch.zeros(8))

    def join(rows):
        return {"x": torch.stack([x for x, _ in rows]) + 100}

    assert chosen(DataLoader(dataset, 2, collate_fn=join), 2) == [100, 104]
    held_out = DataLoader(dataset, 2, sampler=SubsetRandomSampler([7, 1, 3, 5]))
    assert chosen(held_out, 2) == [1, 5]


def test_data_that_cannot_be_chosen_from_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(1), 0

    whole = DataLoader([(torch.zeros(4, 5), torch.zeros(4).long())], batch_size=None)
    for data in (Stream(), DataLoader(Stream())):
        with pytest.raises(DataError, match="IterableDataset"):
            evenly_spread(data, 5, batch_size=2)
    with pytest.raises(DataError, match="batch_size=None"):
        evenly_spread(whole, 5, batch_size=2)
    with pytest.raises(DataError, match="no examples"):
        evenly_spread((torch.zeros(0, 1), torch.zeros(0)), 5, batch_size=2)


class Jittered(Pairs):
    """Other inputs each time."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + torch.rand(()), y


def test_augmentation_is_seen_whoever_does_it():
    assert not is_augmented((X, Y))
    assert not is_augmented(Pairs(X, Y))
    assert is_augmented(Jittered(X, Y))
    assert is_augmented(DataLoader(Jittered(X, Y), batch_size=4, shuffle=True))

    def joined(batch):
        return torch.stack([x for x, _ in batch]) * torch.rand(()), torch.arange(len(batch))

    assert is_augmented(DataLoader(Pairs(X, Y), batch_size=4, collate_fn=joined))
    images = splits("digits")
    assert not is_augmented(images.train)
    assert is_augmented(augmented(images, padding=1, flip=False).train)


def test_inputs_are_looked_at_in_whatever_mapping_and_targets_are_not():
    def mapping(batch):
        x, y = (torch.stack(each) for each in zip(*batch, strict=True))
        return UserDict(x=x + torch.rand(()), labels=y)

    def drawn(batch):
        return torch.stack([x for x, _ in batch]), torch.rand(len(batch))

    assert is_augmented(DataLoader(Pairs(X, Y), batch_size=4, collate_fn=mapping))
    assert not is_augmented(DataLoader(Pairs(X, Y), batch_size=4, collate_fn=drawn))


class Lazy(Pairs):
    """Opens what it reads in the process that reads it first."""

    opened = None

    def __getitem__(self, i):
        self.opened = self.opened or os.getpid()
        return super().__getitem__(i)


def test_a_data_set_that_workers_read_is_not_opened_here():
    data = Lazy(X, Y)
    assert not is_augmented(DataLoader(data, batch_size=4, num_workers=2))
    assert data.opened is None


def test_examples_that_cannot_be_joined_are_not_seen_to_change():
    class Growing(Pairs):
        def __getitem__(self, i):
            return torch.randn(1 + i), 0

    assert not is_augmented(DataLoader(Growing(X, Y), batch_size=1))


def test_a_look_at_the_data_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    is_augmented(Jittered(X, Y))
    assert torch.equal(torch.rand(3), want)


def test_data_that_cannot_be_asked_twice_are_not_seen_to_change():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(X[0], 0)])

    assert not is_augmented(DataLoader(Stream(), batch_size=1))
