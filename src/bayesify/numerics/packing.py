"""Small integers stored in as many bits as they need, and sorted positions stored as gaps.

A stream of b-bit codes is one long binary number: bit j of code i is bit i b + j of the stream, and
bit s of the stream is bit s mod 8 of byte s div 8 (little-endian throughout, as in Arrow, Parquet
and DEFLATE). So 8 codes fill b bytes, and in such a group it is fixed which code meets which byte.
There are at most 8 + b of these meetings; each is one shift of one column of all groups at once.

Positions p_1 < p_2 < ... are stored as the numbers of places skipped between them,

    g_1 = p_1,    g_i = p_i - p_{i-1} - 1,

in b bits each. The code of all ones, 2^b - 1, is an escape: that many places are skipped and the
gap goes on in the next code. So every gap can be stored with every b, and b is chosen for the
fewest bytes. One place in a hundred, at random, takes 8.7 bits a position; its entropy is 8.1.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from bayesify.core.errors import LoadError, OptionError

WIDEST = 16
"""The most bits a code can have: 65,536 different codes."""

BLOCK = 2**17
"""How many codes are shifted at a time; a multiple of 8, so that blocks end on whole bytes."""


class PackedPositions(NamedTuple):
    """Positions as a stream of gaps.

    Attributes:
        data: The stream.
        bits: b, of one code.
        codes: How many codes there are, escapes included: at least one for every position.
    """

    data: UInt8[Tensor, " bytes"]
    bits: int
    codes: int


def bits_for(count: int) -> int:
    """How many bits the codes 0, 1, ... count - 1 need; one at least.

    Raises:
        OptionError: `count` is less than one.

    Example:
        >>> bits_for(256), bits_for(257), bits_for(1)
        (8, 9, 1)
    """
    if count < 1:
        raise OptionError(f"expected at least one code, got count={count}; pass how many there are")
    return max(1, (count - 1).bit_length())


def pack(codes: Integer[Tensor, " codes"], bits: int) -> UInt8[Tensor, " bytes"]:
    """The codes without the bits they do not use.

    Args:
        codes: Of any integer type, from 0 to 2^bits - 1.
        bits: 1 to 16.

    Returns:
        ceil(codes * bits / 8) bytes; the unused bits of the last are zero.

    Raises:
        OptionError: `bits` is out of range, or a code has more bits.

    Example:
        >>> [f"{byte:08b}" for byte in pack(torch.tensor([1, 2, 3]), bits=3).tolist()]
        ['11010001', '00000000']
    """
    _check_width(bits)
    packed = codes.new_empty(_bytes(len(codes), bits), dtype=torch.uint8)
    room = BLOCK // 8 * bits
    for block, out in zip(codes.split(BLOCK), packed.split(room), strict=True):
        _check_codes(block, bits)
        columns = _grouped(block, 8)
        rows = columns.new_zeros(bits, columns.shape[1])
        for code, byte, shift in _meetings(bits):
            rows[byte] |= _shifted(columns[code], shift)
        out.copy_((rows & 0xFF).T.reshape(-1)[: len(out)])
    return packed


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, count: int) -> Int[Tensor, " codes"]:
    """What was packed, as int32.

    Args:
        packed: As `pack` made it.
        bits: Of one code.
        count: How many codes.

    Raises:
        OptionError: `bits` is out of range.
        LoadError: The number of bytes is not that of `count` codes, or there is something in the
            bits behind the last of them.

    Example:
        >>> unpack(pack(torch.tensor([1, 2, 3]), bits=3), bits=3, count=3).tolist()
        [1, 2, 3]
    """
    _check_width(bits)
    if count < 0 or len(packed) != _bytes(count, bits):
        raise LoadError(
            f"expected {_bytes(max(count, 0), bits)} bytes for {count} codes of {bits} bits, got "
            f"{len(packed)}; the data are cut off or of another width: save them again."
        )
    used = count * bits % 8
    if used and int(packed[-1]) >> used:
        raise LoadError(
            f"expected zeros behind the last of {count} codes of {bits} bits, got "
            f"{int(packed[-1]) >> used:b}; the data are damaged: save them again."
        )
    codes = packed.new_empty(count, dtype=torch.int32)
    room = BLOCK // 8 * bits
    for block, out in zip(packed.split(room), codes.split(BLOCK), strict=True):
        rows = _grouped(block, bits)
        columns = rows.new_zeros(8, rows.shape[1])
        for code, byte, shift in _meetings(bits):
            columns[code] |= _shifted(rows[byte], -shift)
        out.copy_((columns & (2**bits - 1)).T.reshape(-1)[: len(out)])
    return codes


def pack_positions(positions: Integer[Tensor, " positions"]) -> PackedPositions:
    """Sorted positions in the fewest bytes that gaps of one width can take.

    The number of codes, and with it the memory, is at least that of the largest gap / 65,535.

    Args:
        positions: Not negative, strictly increasing.

    Raises:
        OptionError: They are not.

    Example:
        >>> pack_positions(torch.tensor([3, 4, 5, 105]))
        PackedPositions(data=tensor([  3,   0, 252,  36], dtype=torch.uint8), bits=6, codes=5)
    """
    before = positions.new_full((1,), -1, dtype=torch.int64)
    gaps = positions.long().diff(prepend=before) - 1
    if len(gaps) and gaps.min() < 0:
        raise OptionError(
            "expected positions that are not negative and strictly increasing, got one that is "
            "not; sort them and drop duplicates with torch.unique."
        )
    needed = {bits: _codes_of(gaps, bits) for bits in range(1, WIDEST + 1)}
    bits = min(needed, key=lambda each: _bytes(needed[each], each))
    escape = 2**bits - 1
    codes = gaps.new_full((needed[bits],), escape)
    codes[(gaps // escape + 1).cumsum(0) - 1] = gaps % escape
    return PackedPositions(pack(codes, bits), bits, len(codes))


def unpack_positions(packed: PackedPositions, size: int | None = None) -> Int[Tensor, " positions"]:
    """The positions, as int64: strictly increasing whatever the data.

    Args:
        packed: As `pack_positions` made it.
        size: How many places there are; every position is to be less. Not checked when None.

    Raises:
        OptionError: The width is out of range.
        LoadError: The data are damaged: of the wrong length, ending within a gap, or with a
            position beyond `size`.

    Example:
        >>> unpack_positions(pack_positions(torch.tensor([3, 4, 5, 105])), size=200).tolist()
        [3, 4, 5, 105]
    """
    codes = unpack(*packed).long()
    ends = codes != 2**packed.bits - 1
    if len(ends) and not ends[-1]:
        raise LoadError(
            f"expected the last of {packed.codes} codes to end a gap, got an escape; the data are "
            f"cut off or damaged: save them again."
        )
    skipped = codes.cumsum(0)[ends]
    positions = skipped + torch.arange(len(skipped), device=skipped.device)
    if size is not None and len(positions) and positions[-1] >= size:
        raise LoadError(
            f"expected positions below {size}, got {int(positions[-1])}; the data are damaged or "
            f"belong to something larger: save them again."
        )
    return positions


def _bytes(codes: int, bits: int) -> int:
    return -(-codes * bits // 8)


def _codes_of(gaps: Tensor, bits: int) -> int:
    return len(gaps) + int((gaps // (2**bits - 1)).sum())


def _meetings(bits: int) -> Iterator[tuple[int, int, int]]:
    """Which of 8 codes has bits in which of `bits` bytes, and how far left it is shifted there."""
    for code in range(8):
        first, end = code * bits, (code + 1) * bits
        for byte in range(first // 8, _bytes(end, 1)):
            yield code, byte, first - 8 * byte


def _shifted(values: Tensor, left: int) -> Tensor:
    return values << left if left >= 0 else values >> -left


def _grouped(values: Tensor, size: int) -> Tensor:
    """(size, groups) int32, contiguous; zeros fill the last group up."""
    groups = -(-len(values) // size)
    filled = values.new_zeros(groups * size, dtype=torch.int32)
    filled[: len(values)] = values
    return filled.view(groups, size).T.contiguous()


def _check_width(bits: int) -> None:
    if not 1 <= bits <= WIDEST:
        raise OptionError(f"expected 1 to {WIDEST} bits, got bits={bits}; split wider codes in two")


def _check_codes(codes: Tensor, bits: int) -> None:
    low, high = (int(each) for each in codes.aminmax()) if len(codes) else (0, 0)
    if low < 0 or high >= 2**bits:
        raise OptionError(
            f"expected codes from 0 to {2**bits - 1} for bits={bits}, got {low} to {high}; "
            f"choose the width with bits_for(number of codes)."
        )
