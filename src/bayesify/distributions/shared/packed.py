"""The state of a `SharedNormal` in as few bytes as it takes, without a change of any number.

    layout       JSON: for each tensor its name and shape, and how long its streams are
    codes        of all entries but outliers, one after the other, in ceil(log2 K) bits each
    outliers     gaps between their positions; blends likewise, then second codes and shares
    loc, ...     learnt numbers, in float16 or as int8 sixteenths where each of them is exactly one

A tensor's streams begin on whole bytes, so they are decoded tensor by tensor. Beside the result are
needed the packed streams (a byte a weight) and what the largest tensor takes.
"""

import json
from typing import Any

import torch
from torch import Tensor

from bayesify.core.errors import LoadError
from bayesify.core.types import Named
from bayesify.numerics.packing import (
    PackedPositions,
    bits_for,
    pack,
    pack_positions,
    unpack,
    unpack_positions,
)
from bayesify.weights.named import dtype_named

NUMBERS = ("loc", "log_scale", "own_loc", "own_log_scale", "spread")
"""What is learnt."""

SIXTEENTHS = 16
"""Logarithms in steps of a sixteenth: standard deviations to 3 %."""


def pack_state(state: Named) -> Named:
    """The state dict of a `SharedNormal`, packed."""
    width = bits_for(len(state["loc"]))
    names = [n.removesuffix(".codes") for n in state if n.endswith(".codes")]
    layout: list[Any] = []
    streams: dict[str, list[Tensor]] = {n: [] for n in ("codes", "outliers", "blends", "second")}
    for name in names:
        codes = state[f"{name}.codes"].cpu()
        coded = _without(codes.numel(), state[f"{name}.outliers"].cpu())
        streams["codes"].append(pack(codes.flatten()[coded], width))
        streams["second"].append(pack(state[f"{name}.second"].cpu(), width))
        sizes = []
        for kind in ("outliers", "blends"):
            gaps = pack_positions(state[f"{name}.{kind}"].cpu())
            streams[kind].append(gaps.data)
            sizes.append([len(gaps.data), gaps.bits, gaps.codes])
        shape = list(codes.shape)
        layout.append([name, shape, *sizes, len(state[f"{name}.blends"])])
    described = {"dtype": str(state["loc"].dtype).removeprefix("torch."), "tensors": layout}
    text = json.dumps(described, separators=(",", ":")).encode()
    shares = torch.cat([state[f"{name}.share"].cpu() for name in names])
    return {
        "layout": torch.tensor(list(text), dtype=torch.uint8),
        **{kind: torch.cat(parts) for kind, parts in streams.items()},
        "share": shares,
        "unit": state["unit"],
        "law_number": state["law_number"],
        **{name: _narrow(state[name]) for name in NUMBERS if name in state},
    }


def unpack_state(packed: Named) -> Named:
    """The state dict that was packed.

    Raises:
        LoadError: something is missing, or the streams are not those of the layout.
    """
    try:
        return _unpacked(packed)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise LoadError(f"a damaged SharedNormal ({error!r}); save it again.") from error


def _unpacked(packed: Named) -> Named:
    described = json.loads(bytes(packed["layout"].tolist()))
    size, dtype = len(packed["loc"]), dtype_named(described["dtype"])
    width = bits_for(size)
    kinds = ("codes", "outliers", "blends", "second", "share")
    taken = {kind: _Reader(packed[kind]) for kind in kinds}
    state: Named = {}
    for name, shape, outliers, blends, blended in described["tensors"]:
        entries = torch.Size(shape).numel()
        for kind, (length, bits, codes) in (("outliers", outliers), ("blends", blends)):
            gaps = PackedPositions(taken[kind].read(length), bits, codes)
            state[f"{name}.{kind}"] = unpack_positions(gaps, entries).int()
        coded = _without(entries, state[f"{name}.outliers"])
        codes = _codes(taken["codes"], width, int(coded.sum()), size)
        state[f"{name}.codes"] = codes.new_zeros(entries).masked_scatter(coded, codes).view(shape)
        state[f"{name}.second"] = _codes(taken["second"], width, blended, size)
        state[f"{name}.share"] = taken["share"].read(blended)
    for kind, reader in taken.items():
        reader.finish(kind)
    numbers = {name: _widened(packed[name], dtype) for name in NUMBERS if name in packed}
    return state | numbers | {name: packed[name] for name in ("unit", "law_number")}


def _narrow(numbers: Tensor) -> Tensor:
    """In the smallest type that changes nothing."""
    sixteenths = (SIXTEENTHS * numbers.double()).clamp(-128, 127).to(torch.int8)
    for small in (sixteenths, numbers.half()):
        if torch.equal(_widened(small, numbers.dtype), numbers):
            return small
    return numbers


def _widened(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    wide = numbers.to(dtype)
    return wide / SIXTEENTHS if numbers.dtype == torch.int8 else wide


def _without(entries: int, outliers: Tensor) -> Tensor:
    """Which entries have a code."""
    return torch.ones(entries, dtype=torch.bool).index_fill(0, outliers.long(), False)


def _codes(stream: "_Reader", width: int, count: int, size: int) -> Tensor:
    codes = unpack(stream.read(-(-count * width // 8)), width, count)
    if count and int(codes.max()) >= size:
        raise LoadError(f"expected codes below {size}, got {int(codes.max())}; save them again.")
    kinds = {2**8: torch.uint8, 2**15: torch.int16}
    return codes.to(next((kind for most, kind in kinds.items() if size <= most), torch.int32))


class _Reader:
    """Takes a stream apart from its beginning."""

    def __init__(self, stream: Tensor) -> None:
        self._stream, self._at = stream, 0

    def read(self, length: int) -> Tensor:
        self._at += length
        return self._stream[self._at - length : self._at]

    def finish(self, kind: str) -> None:
        if self._at != len(self._stream):
            raise LoadError(
                f"expected {self._at} bytes of {kind}, got {len(self._stream)}; save them again."
            )
