"""The part of the training data that a certificate rests on: neither network nor prior saw it.

A bound on the risk of a posterior holds for n examples that are independent of the prior, and of
all weights that are not random. So the examples are cut in two before anything is trained:

    rest          trains the network, which is where the prior is centred
    certifying    trains the posterior, and certifies it

Which examples these were is decided by the seed, and is remembered with a digest of their contents.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesify.core.batches import inputs_and_target, tensors_of
from bayesify.core.errors import DataError, OptionError
from bayesify.data.examples import Examples
from bayesify.data.loading import Data, as_loader, check_plain, subset
from bayesify.weights.named import raw_bytes


@dataclass(frozen=True)
class CertifyingPart:
    """Which of the training examples certify.

    Attributes:
        share: Of the training examples.
        seed: Decided which.
        num_data: Training examples in all.
        examples: How many certify.
        sha256: Of their inputs and targets, in order, without augmentation.
    """

    share: float
    seed: int
    num_data: int
    examples: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**value)

    def of(self, data: Data) -> Data:
        """These examples, out of the training data or given as they are.

        Raises:
            DataError: `data` are neither: the prior may have seen them.
        """
        length = count(data)
        found = data
        if length == self.num_data:
            found = subset(data, _indices(length, self.share, self.seed)[1])
        if count(found) != self.examples or digest(found) != self.sha256:
            raise DataError(
                f"expected the {self.num_data} training examples of the fit, or the "
                f"{self.examples} of them that it kept for the certificate, got {length} others "
                f"(or the same in another order, or augmented); pass the training data, or "
                f"held_out=True if neither the network nor the prior has ever seen these."
            )
        return found


def cut(data: Data, share: float, seed: int) -> tuple[Data, Data, CertifyingPart]:
    """The rest, the certifying part, and how to find it again.

    Args:
        data: All training data.
        share: How much of it certifies, in (0, 1).
        seed: Decides which.

    Raises:
        OptionError: one of the parts would be empty.

    Example:
        >>> rest, certifying, part = cut((torch.randn(10, 2), torch.arange(10)), 0.3, seed=0)
        >>> len(rest[1]), len(certifying[1]), part.examples
        (7, 3, 3)
    """
    length = count(data)
    rest, kept = _indices(length, share, seed)
    if not (len(rest) and len(kept)):
        raise OptionError(
            f"certify_split={share}: expected a share that leaves examples on both sides, got "
            f"{len(rest)} and {len(kept)} of {length}."
        )
    certifying = subset(data, kept)
    part = CertifyingPart(share, seed, length, len(kept), digest(certifying))
    return subset(data, rest), certifying, part


def digest(data: Data) -> str:
    """Of all inputs and targets in their order, in hexadecimal; augmentation is left out."""
    hashes: list[Any] = []
    for batch in as_loader(in_order(data), batch_size=256, shuffle=False):
        inputs, target = inputs_and_target(batch)
        tensors = [*tensors_of(inputs), target]
        hashes = hashes or [hashlib.sha256() for _ in tensors]
        for each, tensor in zip(hashes, tensors, strict=True):
            each.update(raw_bytes(tensor))
    return hashlib.sha256(b"".join(each.digest() for each in hashes)).hexdigest()


def in_order(data: Data) -> Data:
    """Every example once, in the order of the data set, and without augmentation.

    Raises:
        DataError: a loader that leaves examples out, or takes some twice.
    """
    if isinstance(data, Examples):
        return data.plain()
    if not isinstance(data, DataLoader):
        return data
    check_plain(data)
    whole = in_order(data.dataset)
    return DataLoader(whole, batch_size=data.batch_size, collate_fn=data.collate_fn)  # type: ignore[arg-type]


def count(data: Data) -> int:
    """How many examples there are."""
    return len(as_loader(data, batch_size=1, shuffle=False).dataset)  # type: ignore[arg-type]


def _indices(length: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    # by the seed itself: posteriors saved at any time must find their examples again
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    kept = round(share * length)
    return order[kept:].sort().values, order[:kept].sort().values
