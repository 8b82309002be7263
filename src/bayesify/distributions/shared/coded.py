"""A tensor whose entries are references to a codebook.

An entry is one of three kinds:

    shared    book[code]
    blended   share * book[code] + (1 - share) * book[second]
    outlier   a number of its own

Which entry is which never changes under a gradient; the book and the outliers do. The backward pass
of a gather sums over the entries of each code, in one operation.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from bayesify.core.errors import ShapeError

SMALL = {torch.uint8: 2**8, torch.int16: 2**15, torch.int32: 2**31}
"""Types for codes, and how many different ones each holds."""


class CodedTensor(nn.Module):
    """How the entries of one tensor refer to a codebook of K numbers.

    Positions count the entries row by row. Outliers and blends are sorted and disjoint.

    Args:
        codes: One for each entry, 0 to K - 1, in the shape of the tensor; that of an outlier does
            not matter, and 0 is kept for it.
        outliers: Positions of the entries that have numbers of their own.
        blends: Positions of the blended ones.
        second: Their other codes, which differ from the first.
        share: Their shares of the first code in [0, 1], kept as 255ths; or these, as uint8.

    Example:
        >>> coded = CodedTensor(torch.tensor([[0, 1], [1, 0]]), outliers=torch.tensor([3]))
        >>> coded.gather(torch.tensor([0.5, -0.5]), torch.tensor([9.0]))
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  9.0000]])
    """

    codes: Tensor
    outliers: Tensor
    blends: Tensor
    second: Tensor
    share: Tensor

    def __init__(
        self,
        codes: Integer[Tensor, "*shape"],
        outliers: Integer[Tensor, " outliers"] | None = None,
        blends: Integer[Tensor, " blends"] | None = None,
        second: Integer[Tensor, " seconds"] | None = None,
        share: Tensor | None = None,
    ) -> None:
        super().__init__()
        none = torch.empty(0, dtype=torch.int32, device=codes.device)
        blends = none if blends is None else blends
        second = none if second is None else second
        share = none.byte() if share is None else share
        if not len(blends) == len(second) == len(share):
            raise ShapeError(
                f"expected a second code and a share for each of {len(blends)} blended entries, "
                f"got {len(second)} and {len(share)}."
            )
        outliers = (none if outliers is None else outliers).int()
        codes = _filled(codes, outliers)
        highest = max((int(each.max()) for each in (codes, second) if each.numel()), default=0)
        kind = next(kind for kind, count in SMALL.items() if highest < count)
        self.highest = highest
        self.register_buffer("codes", codes.to(kind))
        self.register_buffer("outliers", outliers)
        self.register_buffer("blends", blends.int())
        self.register_buffer("second", second.to(kind))
        if share.is_floating_point():
            share = (255 * share).round()
        self.register_buffer("share", share.to(torch.uint8))

    def gather(
        self,
        book: Float[Tensor, "*samples codes"],
        own: Float[Tensor, "*samples outliers"],
        *,
        power: int = 1,
    ) -> Float[Tensor, "..."]:
        """The tensor, differentiable in the book and in the outliers' own numbers.

        Args:
            book: K numbers, under any leading axes.
            own: Those of the outliers, in the order of their positions.
            power: Of the shares: 2 for variances of independent numbers.
        """
        flat = book.index_select(-1, self.codes.flatten().int())  # (..., entries)
        if len(self.blends):
            flat = flat.index_copy(-1, self.blends.long(), self.blended(book, power=power))
        if len(self.outliers):
            flat = flat.index_copy(-1, self.outliers.long(), own)
        return flat.view(book.shape[:-1] + self.codes.shape)

    def blended(
        self, book: Float[Tensor, "*samples codes"], *, power: int = 1
    ) -> Float[Tensor, "*samples blends"]:
        """The blended entries alone."""
        first = self.codes.flatten().index_select(0, self.blends)
        share = self.share.to(book.dtype) / 255
        return share**power * book.index_select(-1, first.int()) + (
            1 - share
        ) ** power * book.index_select(-1, self.second.int())

    def counts(self, size: int) -> Integer[Tensor, " codes"]:
        """How many entries each of `size` codes has to itself, without blends and outliers."""
        codes = self.codes.flatten()
        counts = torch.bincount(codes.int(), minlength=size)
        for taken in (self.outliers, self.blends):
            counts -= torch.bincount(codes[taken.long()].int(), minlength=size)
        return counts

    def alone(self) -> Integer[Tensor, " shared"]:
        """Positions of the shared entries, those that are neither blended nor outliers."""
        shared = torch.ones(self.codes.numel(), dtype=torch.bool, device=self.codes.device)
        shared[self.outliers.long()] = False
        shared[self.blends.long()] = False
        return shared.nonzero()[:, 0]

    @property
    def own_count(self) -> int:
        """How many outliers there are."""
        return len(self.outliers)

    def twin(self) -> "CodedTensor":
        """The same in the same memory; moving one to another device leaves the other."""
        return CodedTensor(self.codes, self.outliers, self.blends, self.second, self.share)

    def recoded(self, new: Integer[Tensor, " codes"]) -> "CodedTensor":
        """The same with code k replaced by new[k]; a blend of one code is a shared entry."""
        codes, second = new[self.codes.long()], new[self.second.long()]
        real = codes.flatten()[self.blends.long()] != second
        return CodedTensor(codes, self.outliers, self.blends[real], second[real], self.share[real])


def _filled(codes: Tensor, outliers: Tensor) -> Tensor:
    """With 0 for outliers; the same memory where that is so."""
    if not bool(codes.flatten()[outliers.long()].any()):
        return codes
    return codes.flatten().index_fill(0, outliers.long(), 0).view(codes.shape)
