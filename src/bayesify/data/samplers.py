"""Which examples of its data set the passes over a loader give.

The number of examples N of a posterior is what one pass gives, by count: the data set of a loader
knows neither the subset that a sampler takes nor the batch that `drop_last` drops. An example that
a pass gives several times is one all the same, so N is never more than there are different ones.
"""

from collections.abc import Iterator, Sequence, Sized
from copy import deepcopy
from typing import Any, cast

import torch
from torch import distributed
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from bayesify.core.errors import DataError


def check_one_process(loader: DataLoader[Any]) -> None:
    """Refuse data that are shared out among several processes.

    Raises:
        DataError: each of the processes would train a posterior of its own, on its share.
    """
    shares = [
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1,
        *(getattr(each, "num_replicas", None) or 1 for each in _samplers(loader)),
    ]
    if max(shares) > 1:
        raise DataError(
            f"expected one process that sees all data, got {max(shares)} that share them: each "
            f"would train a posterior of its own on its share, as gradients are not exchanged. Fit "
            f"in one process (`python` in place of `torchrun`, before `init_process_group`, and "
            f"without a DistributedSampler), save the posterior, and load it wherever it is needed."
        )


def known_indices(loader: DataLoader[Any]) -> Sequence[int] | None:
    """The numbers of the examples that passes may give, sorted.

    Of a sampler of one's own: those of one pass. None where items are no single examples, or are
    not known by number.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(9, 1))
        >>> known_indices(DataLoader(data, sampler=SubsetRandomSampler([5, 2])))
        [2, 5]
    """
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        return None
    everything = range(len(cast(Sized, dataset)))
    *_, sampler = _samplers(loader)
    if isinstance(sampler, SequentialSampler | RandomSampler):
        return everything
    if isinstance(sampler, SubsetRandomSampler):
        return sorted(set(map(int, sampler.indices)))
    if isinstance(sampler, WeightedRandomSampler):
        return torch.as_tensor(sampler.weights).nonzero().flatten().tolist()
    with torch.random.fork_rng(devices=[]):
        try:
            sampler = deepcopy(sampler)  # a pass may move it on
        except Exception:  # a user's object may raise anything when it is copied
            return everything
        try:
            return sorted(set(_numbers(sampler)))
        except (TypeError, ValueError):  # keys that are no numbers
            return None


def num_data(loader: DataLoader[Any], given: int) -> int:
    """N, of a loader one pass over which gave so many examples.

    Raises:
        DataError: each of several workers gives the whole of an `IterableDataset`.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(9, 1))
        >>> twice = RandomSampler(data, replacement=True, num_samples=18)
        >>> num_data(DataLoader(data, 4, drop_last=True), given=8)
        8
        >>> num_data(DataLoader(data, 4, sampler=twice), given=18)
        9
    """
    dataset, batches = loader.dataset, loader.batch_sampler
    there = _length(dataset)
    if isinstance(dataset, IterableDataset):
        if batches is not None and there and loader.num_workers > 1 and given > there:
            raise DataError(
                f"the loader gives {given} examples, but its IterableDataset has {there}: each of "
                f"the {loader.num_workers} workers gives all of them. Let each give its share (see "
                f"torch.utils.data.get_worker_info), or set num_workers=1."
            )
        return given
    if batches is not None and type(batches) is not BatchSampler and there:
        return min(given, there)  # nobody knows how often batches of one's own take an example
    *_, sampler = _samplers(loader)
    taken = _length(sampler)
    return round(given * there / taken) if there and taken and taken > there else given


def different(loader: DataLoader[Any], given: int) -> int:
    """How many different examples the passes give in all, where one gives so many."""
    whole = loader.batch_sampler is None and not hasattr(loader.sampler, "batch_size")
    known = None if whole else known_indices(loader)
    return given if known is None else max(given, len(known))


def _samplers(loader: DataLoader[Any]) -> Iterator[Any]:
    """From the outermost to the one that gives single numbers."""
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    for _ in range(8):  # samplers that wrap each other in a circle
        yield sampler
        inner = getattr(sampler, "sampler", None)
        if inner is None:
            return
        sampler = inner


def _numbers(sampler: Any) -> Iterator[int]:
    for each in sampler:
        yield from map(int, each) if isinstance(each, Sequence) else [int(each)]


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except (TypeError, NotImplementedError):
        return None
