"""From what a user calls data to batches."""

from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from bayesify.data.parts import Examples
from bayesify.errors import DataError, OptionError, ShapeError

Data = DataLoader[Any] | Dataset[Any] | tuple[Tensor, Tensor]
"""A loader of batches, a data set of `(x, y)` examples, or the tensors x and y themselves."""


def as_loader(data: Data, *, batch_size: int, shuffle: bool) -> DataLoader[Any]:
    """A loader over `data`; one that is a loader already is returned as it is.

    Args:
        data: See `Data`.
        batch_size: Examples a batch.
        shuffle: Whether the order is drawn anew each epoch, from torch's global generator.

    Raises:
        DataError: the data are empty, or x and y differ in length.
        OptionError: the batch size is not positive.
    """
    if isinstance(data, DataLoader):
        _length(data.dataset)
        return data
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: expected at least 1.")
    if isinstance(data, tuple):
        if len(data) != 2 or not all(isinstance(each, Tensor) for each in data):
            raise DataError("expected the two tensors (x, y); wrap other inputs in a Dataset.")
        if len(data[0]) != len(data[1]):
            raise ShapeError(f"x has {len(data[0])} examples, but y has {len(data[1])}; pair them.")
        data = TensorDataset(*data)
    _length(data)
    if not isinstance(data, TensorDataset | Examples):
        return DataLoader(data, batch_size=batch_size, shuffle=shuffle)
    # Whole batches are taken from the tensors by one index: many times faster than one example
    # after the other. A last batch of one example would break batch norm, so it is left out.
    sampler = RandomSampler(data) if shuffle else SequentialSampler(data)
    single = shuffle and len(data) > batch_size and len(data) % batch_size == 1
    batches = BatchSampler(sampler, batch_size, drop_last=single)
    return DataLoader(data, sampler=batches, batch_size=None)


def _length(data: Dataset[Any]) -> int:
    try:
        length = len(data)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(
            "the data set has no length; expected one that knows its number of examples N, which "
            "the objective divides by (define `__len__`)."
        ) from error
    if not length:
        raise DataError("the data set holds no examples; expected at least one.")
    return length
