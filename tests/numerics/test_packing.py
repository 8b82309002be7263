import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesify.core.errors import LoadError, OptionError
from bayesify.numerics import packing
from bayesify.numerics.packing import (
    PackedPositions,
    bits_for,
    pack,
    pack_positions,
    unpack,
    unpack_positions,
)

WIDTHS = range(1, 17)


def codes_of(bits: int, count: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(0, 2**bits, (count,)).to(dtype)


def one_long_number(codes: torch.Tensor, bits: int) -> list[int]:
    """The bytes, from a Python integer of all the bits."""
    number = sum(code << (i * bits) for i, code in enumerate(codes.tolist()))
    return list(number.to_bytes(-(-len(codes) * bits // 8), "little"))


@pytest.mark.parametrize("bits", WIDTHS)
@given(count=st.integers(0, 300), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_codes_are_the_digits_of_one_long_number(bits, count, seed):
    torch.manual_seed(seed)
    codes = codes_of(bits, count)
    packed = pack(codes, bits)
    assert packed.tolist() == one_long_number(codes, bits)
    assert unpack(packed, bits, count).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 127, 128, 129, 300])
def test_codes_in_several_blocks_are_those_in_one(bits, count, monkeypatch):
    codes = codes_of(bits, count)
    want = pack(codes, bits)
    monkeypatch.setattr(packing, "BLOCK", 64)
    packed = pack(codes, bits)
    assert packed.equal(want)
    assert unpack(packed, bits, count).equal(codes.int())


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_borders_of_real_blocks_are_passed(bits):
    for count in (packing.BLOCK - 1, packing.BLOCK, 2 * packing.BLOCK + 3):
        codes = codes_of(bits, count)
        packed = pack(codes, bits)
        assert packed.dtype == torch.uint8
        assert len(packed) == -(-count * bits // 8)
        assert unpack(packed, bits, count).equal(codes.int())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_is_packed_alike(dtype):
    codes = codes_of(7, 100, dtype)
    assert pack(codes, 7).equal(pack(codes.long(), 7))
    assert unpack(pack(codes, 7), 7, 100).dtype == torch.int32


def test_the_greatest_code_of_every_width_fits():
    for bits in WIDTHS:
        codes = torch.full((9,), 2**bits - 1)
        assert unpack(pack(codes, bits), bits, 9).equal(codes.int())


def test_the_width_is_the_length_of_the_greatest_code():
    for count in [*range(1, 100), 255, 256, 257, 6000, 65_535, 65_536]:
        assert bits_for(count) == max(1, len(f"{count - 1:b}"))
    with pytest.raises(OptionError, match="count=0"):
        bits_for(0)


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_other_widths_are_refused(bits):
    with pytest.raises(OptionError, match="bits="):
        pack(torch.zeros(3, dtype=torch.int64), bits)
    with pytest.raises(OptionError, match="bits="):
        unpack(torch.zeros(3, dtype=torch.uint8), bits, 3)


@pytest.mark.parametrize("wrong", [-1, 8])
def test_codes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(OptionError, match="from 0 to 7"):
        pack(torch.tensor([0, wrong, 7]), 3)


@pytest.mark.parametrize("count", [-1, 0, 9, 11, 1000])
def test_data_of_another_length_are_refused(count):
    packed = pack(codes_of(12, 10), 12)
    with pytest.raises(LoadError, match="bytes"):
        unpack(packed, 12, count)


def test_something_behind_the_last_code_is_refused():
    packed = pack(torch.tensor([1, 2, 3]), 3)
    packed[-1] |= 0b10
    with pytest.raises(LoadError, match="behind the last"):
        unpack(packed, 3, 3)


def test_many_codes_take_no_time():
    """Forty-four million are to take about a second; this leaves a busy machine a factor of ten."""
    codes = codes_of(8, 4_000_000, torch.int32)
    start = time.process_time()
    back = unpack(pack(codes, 8), 8, len(codes))
    assert time.process_time() - start < 1.6
    assert back.equal(codes)


# --- positions


@given(st.sets(st.integers(0, 5_000)))
@settings(deadline=None)
def test_positions_come_back(positions):
    wanted = sorted(positions)
    packed = pack_positions(torch.tensor(wanted, dtype=torch.int64))
    assert unpack_positions(packed, 5_001).tolist() == wanted


@pytest.mark.parametrize(
    "positions",
    [
        [],
        [0],
        [44_549_160],
        list(range(1000)),
        [*range(7, 100), *range(10**6, 10**6 + 100)],
        [0, 10**9],
        [10**9, 10**9 + 1, 3 * 10**9],
        [2**b - 1 for b in range(25)],
        [2**b for b in range(25)],
        [2**b + 1 for b in range(1, 25)],
    ],
)
def test_positions_with_any_gaps_come_back(positions):
    packed = pack_positions(torch.tensor(positions, dtype=torch.int64))
    back = unpack_positions(packed)
    assert back.dtype == torch.int64
    assert back.tolist() == positions
    assert len(packed.data) == -(-packed.codes * packed.bits // 8)


def test_a_dense_run_takes_one_bit_a_position():
    packed = pack_positions(torch.arange(8_000))
    assert packed.bits == 1
    assert len(packed.data) == 1_000


def test_sparse_positions_take_little_more_than_their_entropy():
    positions = torch.nonzero(torch.rand(1_000_000) < 0.01).flatten()
    packed = pack_positions(positions)
    assert unpack_positions(packed, 1_000_000).equal(positions)
    assert 8 * len(packed.data) / len(positions) < 8.8  # 8.1 is the entropy


def test_no_other_width_takes_fewer_bytes():
    positions = torch.nonzero(torch.rand(20_000) < 0.03).flatten()
    best = len(pack_positions(positions).data)
    gaps = positions.diff(prepend=torch.tensor([-1])) - 1
    for bits in WIDTHS:
        codes = sum(gap // (2**bits - 1) + 1 for gap in gaps.tolist())
        assert best <= -(-codes * bits // 8)


@pytest.mark.parametrize("positions", [[-1], [3, 3], [5, 4], [-2, 7]])
def test_positions_that_do_not_increase_are_refused(positions):
    with pytest.raises(OptionError, match="strictly increasing"):
        pack_positions(torch.tensor(positions))


def test_damaged_positions_are_refused():
    packed = pack_positions(torch.tensor([3, 4, 5, 105]))
    with pytest.raises(LoadError, match="bytes"):
        unpack_positions(packed._replace(data=packed.data[:-1]))
    with pytest.raises(LoadError, match="bytes"):
        unpack_positions(packed._replace(codes=packed.codes + 2))
    with pytest.raises(LoadError, match="below 105, got 105"):
        unpack_positions(packed, size=105)
    cut = PackedPositions(pack(torch.tensor([2, 7]), 3), bits=3, codes=2)
    with pytest.raises(LoadError, match="escape"):
        unpack_positions(cut)
