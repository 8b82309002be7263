"""From what a user calls data to batches."""

from collections.abc import Iterator, Sequence, Sized
from itertools import islice
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from bayesify.core.batches import split_batch, tensors_of
from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.data.examples import Examples
from bayesify.data.samplers import known_indices

Data = DataLoader[Any] | Dataset[Any] | tuple[Tensor, Tensor]
"""A loader of batches, a data set of `(x, y)` examples, or the tensors x and y themselves."""


def as_loader(data: Data, *, batch_size: int, shuffle: bool) -> DataLoader[Any]:
    """A loader over `data`; one that is a loader already is returned as it is.

    Args:
        data: See `Data`.
        batch_size: Examples a batch.
        shuffle: Whether the order is drawn anew each epoch, from torch's global generator; of an
            `IterableDataset` its own order stays.

    Raises:
        DataError: the data are empty, or x and y differ in length.
        OptionError: the batch size is not positive.
    """
    if isinstance(data, DataLoader):
        _length(data.dataset)
        return data
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: expected at least 1.")
    dataset = _as_dataset(data)
    _length(dataset)
    if isinstance(dataset, IterableDataset):  # in the order of its own
        return DataLoader(dataset, batch_size=batch_size)
    if shuffle:
        batches = EvenBatches(RandomSampler(cast(Sized, dataset)), batch_size)
    else:
        batches = BatchSampler(SequentialSampler(cast(Sized, dataset)), batch_size, drop_last=False)
    if not isinstance(dataset, TensorDataset | Examples):
        return DataLoader(dataset, batch_sampler=batches)
    # Whole batches are taken from the tensors by one index: many times faster than one example
    # after the other.
    return DataLoader(dataset, sampler=batches, batch_size=None)


def subset(data: Data, index: Tensor) -> Data:
    """The examples `index` of `data`, in that order, and the same kind of data where possible.

    Args:
        data: See `Data`. Of a loader, its batch size, order (shuffled or not) and collation stay.
        index: Numbers of examples, (n,).

    Raises:
        DataError: a loader with a batch sampler of its own, or data that cannot be indexed.

    Example:
        >>> x, y = subset((torch.arange(4.0), torch.arange(4)), torch.tensor([3, 0]))
        >>> x.tolist(), y.tolist()
        ([3.0, 0.0], [3, 0])
    """
    if isinstance(data, DataLoader):
        return _part_of_loader(data, index)
    if isinstance(data, Examples):
        return Examples(data.x[index], data.y[index], data.normalise, data.augment)
    dataset = _as_dataset(data)
    _length(dataset)
    check_numbered(dataset)
    if isinstance(dataset, TensorDataset):
        parts = [each[index] for each in dataset.tensors]
        return cast(Data, tuple(parts)) if isinstance(data, tuple | list) else TensorDataset(*parts)
    return Subset(dataset, index.tolist())


def evenly(total: int, size: int) -> Int[Tensor, " size"]:
    """`size` of the indices below `total`, spread evenly.

    Example:
        >>> evenly(10, 4).tolist()
        [0, 2, 5, 7]
    """
    return torch.arange(size) * total // size


def evenly_spread(
    data: Data, examples: int | None, *, batch_size: int
) -> tuple[DataLoader[Any], int]:
    """A loader over some examples of `data`, evenly spread in their order, and their number.

    A `DataLoader` is only asked for its data set, for how it joins examples, and for which of them
    its sampler may give: its order and its batch size do not matter.

    Args:
        data: Data; they must know their examples by index.
        examples: How many; None, or more than there are, for all.
        batch_size: Of the loader.

    Raises:
        DataError: the data cannot be read by index, or are empty.

    Example:
        >>> x = torch.arange(10.0).unsqueeze(1)
        >>> loader, count = evenly_spread((x, x), 5, batch_size=5)
        >>> next(iter(loader))[0].flatten().tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    check_numbered(getattr(data, "dataset", data))
    dataset = as_loader(data, batch_size=batch_size, shuffle=False).dataset
    known: Sequence[int] = range(len(cast(Sized, dataset)))
    collate = None
    if isinstance(data, DataLoader):
        known = known_indices(data) or known
        if data.batch_sampler is not None:
            collate = data.collate_fn
        elif not isinstance(dataset, TensorDataset | Examples):
            raise DataError(
                "expected a DataLoader that joins single examples, got one with batch_size=None; "
                "give the data set itself, if its items are examples."
            )
    count = len(known) if examples is None else min(examples, len(known))
    chosen = [known[each] for each in evenly(len(known), count).tolist()]
    return DataLoader(Subset(dataset, chosen), batch_size=batch_size, collate_fn=collate), count


def is_augmented(data: Data, *, examples: int = 8) -> bool:
    """Whether inputs are seen to differ when the same examples are asked for twice.

    False where that cannot be seen: of data that do not know their examples by index, or whose
    examples cannot be joined. A loader with workers is looked at through one, as a data set may
    open its files where it is first read.

    Args:
        data: Data.
        examples: How many are asked for, evenly spread.

    Example:
        >>> is_augmented((torch.ones(4, 2), torch.zeros(4)))
        False
    """
    try:
        loader, _ = evenly_spread(data, examples, batch_size=examples)
        if isinstance(data, DataLoader):
            loader = DataLoader(
                loader.dataset,
                batch_size=examples,
                collate_fn=loader.collate_fn,
                num_workers=min(1, data.num_workers),
                worker_init_fn=data.worker_init_fn,
                multiprocessing_context=data.multiprocessing_context,
            )
        with torch.random.fork_rng(devices=[]):
            looks = [tensors_of(split_batch(next(iter(loader)))[0]) for _ in range(2)]
        return not all(map(torch.equal, *looks))
    except Exception:  # a user's data set or collation may raise anything when asked so
        return False


class EvenBatches(Sampler[list[int]]):
    """As few batches of at most `batch_size` as hold all examples, their sizes equal up to one.

    A step on a small last batch would be as long as any, and noisier; on one example alone batch
    norm has no statistics.

    Example:
        >>> [len(batch) for batch in EvenBatches(SequentialSampler(range(21)), 10)]
        [7, 7, 7]
    """

    def __init__(self, sampler: RandomSampler | SequentialSampler, batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order, count = iter(self.sampler), len(self)
        smaller, larger = divmod(len(self.sampler), count)
        for batch in range(count):
            yield list(islice(order, smaller + (batch < larger)))


def _part_of_loader(loader: DataLoader[Any], index: Tensor) -> DataLoader[Any]:
    dataset = loader.dataset
    _length(dataset)
    check_numbered(dataset)
    check_plain(loader)
    return DataLoader(
        Subset(dataset, index.tolist()),
        batch_size=loader.batch_size,
        shuffle=isinstance(loader.sampler, RandomSampler),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
    )


class Passes:
    """Passes over a loader that may run side by side.

    A loader with `persistent_workers` has one iterator, which a second pass would take over; a
    pass beside another then has workers of its own.

    Args:
        loader: The loader.

    Example:
        >>> passes = Passes(as_loader(torch.arange(4.0), batch_size=2, shuffle=False))
        >>> [len(each) for each in zip(passes(), passes())]
        [2, 2]
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader, self._running = loader, False

    def __call__(self) -> Iterator[Any]:
        """All batches, once.

        Raises:
            DataError: there is none: the data can be read only once.
        """
        if self._running and self._loader.persistent_workers:
            yield from _not_persistent(self._loader)
            return
        self._running, batch = True, None
        try:
            for batch in self._loader:
                yield batch
        finally:
            self._running = False
        if batch is None:
            raise DataError(
                "a pass over the loader gave no batch, though the one before did; expected data "
                "that can be read again and again, as epochs do. Make its iterator anew in "
                "`__iter__`."
            )


def _not_persistent(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same, with workers that end with each pass."""
    batches: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if loader.batch_sampler is None:
        batches = {"sampler": loader.sampler, "batch_size": None}
    return DataLoader(
        loader.dataset,
        **batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


def check_numbered(dataset: Any) -> None:
    """Refuse data of which no part can be taken by number.

    Raises:
        DataError: an `IterableDataset`.
    """
    if isinstance(dataset, IterableDataset):
        raise DataError(
            "expected data that know their examples by index, to choose some of them, got an "
            "IterableDataset; gather some of its examples into the tensors (x, y)."
        )


def check_plain(loader: DataLoader[Any]) -> None:
    """Refuse a loader that does not give every example of its data set once.

    Raises:
        DataError: it has a sampler of its own, so that nobody knows which examples it leaves out.
    """
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(cast(Sized, loader.dataset))
    )
    plain = loader.batch_size is not None and type(loader.batch_sampler) is BatchSampler
    if not (whole and plain):
        raise DataError(
            "expected a DataLoader that gives every example of its data set once, got one with a "
            "sampler of its own, of which no part can be taken; pass a data set of the examples "
            "that you mean, such as torch.utils.data.Subset."
        )


def _as_dataset(data: Any) -> Dataset[Any]:
    pair = isinstance(data, list) and all(isinstance(each, Tensor) for each in data)
    if not (pair or isinstance(data, tuple)):
        return cast(Dataset[Any], data)
    if len(data) != 2 or not all(isinstance(each, Tensor) for each in data):
        got = ", ".join(type(each).__name__ for each in data)
        raise DataError(
            f"expected the two tensors (x, y), got ({got}); make tensors with "
            f"`torch.as_tensor`, or wrap several inputs in a Dataset."
        )
    if len(data[0]) != len(data[1]):
        raise ShapeError(f"x has {len(data[0])} examples, but y has {len(data[1])}; pair them.")
    return TensorDataset(*data)


def _length(data: Dataset[Any]) -> int:
    try:
        length = len(data)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(
            "the data set has no length; expected one that knows how many examples it holds, as a "
            "stream may never end (define `__len__`)."
        ) from error
    if not length:
        raise DataError("the data set holds no examples; expected at least one.")
    return length
