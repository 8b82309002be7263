"""Features of the trunk, kept from one epoch to the next.

Training with a frozen trunk (`trunk.py`) computes the same features of the same examples in every
epoch. Here they are kept by example. Loaders shuffle and give no numbers, so an example is known by
its contents: a hash of its row of every input.

A tensor of the frontier belongs to its examples row by row, along whichever axis grows with the
batch, or it is the same for all batches (numbers of positions, say). Which it is, and that no row
depends on its neighbours, is seen from runs on two examples, alone and together.
"""

import hashlib
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bayesify.core.batches import batch_size, leaves_of, rows
from bayesify.core.errors import DataError, OptionError, UnsupportedModelError
from bayesify.core.types import Inputs
from bayesify.forward.prefix import Place
from bayesify.forward.trunk import Features, Trunk, close, refuse_gradients, stand_in

TOLERANCE = 1e-4
"""How far an example's features may differ between batches, relative to the largest entry: sums
over a batch of another size are taken in another order."""


CACHE_LIMIT = 2 * 2**30
"""Bytes that kept features may take, if nothing else is said."""


class FeatureCache:
    """Features by example. Give it every batch of every epoch; it runs the trunk on new examples.

    Args:
        trunk: What computes them.
        num_data: Number of examples N.
        cache_limit: Bytes that all of them may take.
        passes: How often an epoch visits the data.

    Raises:
        OptionError: they would take more, or a number is out of range.
        UnsupportedModelError: the features of an example depend on the rest of its batch.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)).eval()
        >>> x = torch.randn(6, 4)
        >>> cache = FeatureCache(Trunk.of(net, {"1.weight"}, x), num_data=6)
        >>> cache.bytes                                             # 6 rows of 8 floats
        192
        >>> _ = cache.cache(x)
        >>> cache.end_epoch()
        >>> features = cache.cache(x[[5, 2]])                       # runs nothing
        >>> [tuple(each.shape) for each in features.frontier.values()]
        [(2, 8)]
    """

    def __init__(
        self,
        trunk: Trunk | None,
        *,
        num_data: int,
        cache_limit: int = CACHE_LIMIT,
        passes: int = 1,
    ) -> None:
        if trunk is None:
            raise UnsupportedModelError(
                "expected a trunk, got None: nothing that could be kept is computed before the "
                "first random weight; train without a feature cache."
            )
        for name, value in (("num_data", num_data), ("passes", passes)):
            if value < 1:
                raise OptionError(f"{name}={value}: expected at least 1.")
        self._trunk, self._num_data, self._limit = trunk, num_data, cache_limit
        self._passes = passes
        self._layouts: dict[Hashable, _Layout] = {}
        self._unseen, self._visits, self._later = num_data, 0, False
        self._layout(trunk.example)

    @property
    def _held(self) -> int:
        return sum(len(each.numbers) for each in self._layouts.values())

    @property
    def bytes(self) -> int:
        """What the features of all N examples take."""
        used = [each for each in self._layouts.values() if each.numbers]
        return self._num_data * sum(e.row_bytes for e in used or self._layouts.values())

    def cache(self, inputs: Inputs) -> Features:
        """The features of a batch, for `Trunk.replay`.

        Raises:
            DataError: there are more different inputs than examples, or a gradient is wanted.
            OptionError: these inputs have another shape than before, and one of each is too much.
            UnsupportedModelError: see the class, or the model takes another path.
        """
        refuse_gradients(inputs)
        layout, keys = self._layout(inputs), _keys(inputs)
        new = {key: number for number, key in enumerate(keys) if key not in layout.numbers}
        self._admit(len(new))
        if new:
            index = torch.tensor(list(new.values()))
            part = inputs if len(new) == len(keys) else rows(inputs, index)
            layout.add(list(new), self._trunk.features(part), self._num_data)
        self._visits += len(keys)
        return layout.features([layout.numbers[key] for key in keys])

    def shared(self, inputs: Inputs) -> Callable[[], AbstractContextManager[None]]:
        """Makes the context of each call of the model on `inputs`: a replay."""
        features = self.cache(inputs)
        return lambda: self._trunk.replay(features)

    def end_epoch(self) -> None:
        """From the second epoch on, only what the first one left out (a dropped batch) is new."""
        if not self._later:
            left_out = self._num_data - self._visits // self._passes
            self._unseen = max(0, min(left_out, self._num_data - self._held))
        self._later = True

    def _admit(self, new: int) -> None:
        if new > self._unseen:
            when = "after the first epoch" if self._later else "in the first epoch"
            raise DataError(
                f"expected the same inputs in every epoch, {self._num_data} in all, got {new} that "
                f"are new {when}; cached features need inputs that do not change from visit to "
                f"visit: switch off data augmentation, pad texts to a fixed length rather than to "
                f"the longest of a batch, or train without cached features."
            )
        self._unseen -= new

    def _layout(self, inputs: Inputs) -> "_Layout":
        signature = _signature(inputs)
        known = self._layouts.get(signature)
        if known is None or (known.alone and batch_size(inputs) > 1):
            layout = _Layout(self._trunk, inputs)
            used = [each for each in self._layouts.values() if each.numbers]
            wanted = self._num_data * sum(each.row_bytes for each in [*used, layout])
            if wanted > self._limit:
                shapes = [tuple(each.shape[1:]) for each in layout.rows]
                raise OptionError(
                    f"cache_limit={self._limit}: expected room for the features {shapes} of "
                    f"{self._num_data} examples, {wanted} bytes in all; raise the limit, make a "
                    f"weight random that comes earlier or later, or train without cached features."
                )
            self._layouts[signature] = layout
        return self._layouts[signature]


class _Layout:
    """How features of inputs of one shape are cut into rows and put together.

    Attributes:
        numbers: Which row an example has.
        alone: Whether it was seen on one example only, and holds none yet.
        row_bytes: Of one example.
        rows: For each tensor that is kept, (rows, ...): one row at first, N once there are some.
    """

    def __init__(self, trunk: Trunk, inputs: Inputs) -> None:
        pair = [0, min(1, batch_size(inputs) - 1)]
        singles = [trunk.features(rows(inputs, slice(each, each + 1))) for each in pair]
        self._both = trunk.features(rows(inputs, torch.tensor(pair)))
        self._flat, self._tree = tree_flatten(self._both.results)
        self._single = tree_leaves(singles[0].results)
        first: dict[int, Place] = {}
        for place, each in self._both.frontier.items():
            first.setdefault(id(each), place)
        self._kinds = list(first.values())
        self._group = {p: first[id(each)] for p, each in self._both.frontier.items()}
        self._axes = {p: self._axis(p, singles[0]) for p in self._kinds}
        for each in singles:
            self._check(each)
        self._own = [place for place in self._kinds if self._axes[place] is not None]
        parts = [[self._cut(place, each, 1) for each in singles] for place in self._own]
        whole = [self._cut(place, self._both, 2) for place in self._own]
        if not all(close(a, torch.cat(b), TOLERANCE) for a, b in zip(whole, parts, strict=True)):
            raise _mixed("they change with the rest of the batch")
        self.rows = [each[0].clone() for each in parts]
        self.row_bytes = sum(each.numel() * each.element_size() for each in self.rows)
        self.numbers: dict[bytes, int] = {}
        self.alone = pair[0] == pair[1]

    def add(self, keys: list[bytes], features: Features, capacity: int) -> None:
        """Keep the rows of new examples."""
        self._check(features)
        start, size, self.alone = len(self.numbers), len(keys), False
        if not start:
            self.rows = [each.new_empty(capacity, *each.shape[1:]) for each in self.rows]
        for kept, place in zip(self.rows, self._own, strict=True):
            kept[start : start + size] = self._cut(place, features, size)
        self.numbers |= {key: start + number for number, key in enumerate(keys)}

    def features(self, numbers: list[int]) -> Features:
        """As the trunk would compute them for a batch of these rows."""
        real = {place: self._both.frontier[place] for place in self._kinds}
        for kept, place in zip(self.rows, self._own, strict=True):
            real[place] = self._joined(place, kept[torch.tensor(numbers, device=kept.device)])
        known = {id(self._both.frontier[place]): each for place, each in real.items()}
        leaves = [
            known[id(each)] if id(each) in known else self._resized(each, single, len(numbers))
            for each, single in zip(self._flat, self._single, strict=True)
        ]
        frontier = {place: real[group] for place, group in self._group.items()}
        return Features(tree_unflatten(leaves, self._tree), frontier)

    def _axis(self, place: Place, single: Features) -> int | None:
        """The axis that grows with the batch."""
        one, two = single.frontier[place].shape, self._both.frontier[place].shape
        if one == two:
            return None
        axes = [a for a, (m, n) in enumerate(zip(one, two, strict=True)) if m != n]
        if len(axes) != 1 or two[axes[0]] != 2 * one[axes[0]]:
            raise _mixed(f"their shape is {tuple(one)} for one and {tuple(two)} for two")
        return axes[0]

    def _cut(self, place: Place, features: Features, size: int) -> Tensor:
        """Rows (size, ...). The axis may hold several entries of each example (tokens, heads)."""
        axis = self._axes[place]
        assert axis is not None
        return features.frontier[place].unflatten(axis, (size, -1)).movedim(axis, 0)

    def _joined(self, place: Place, cut: Tensor) -> Tensor:
        """The inverse, with axes in the memory's order of before: a model may ask for a `view`."""
        axis, like = self._axes[place], self._both.frontier[place]
        assert axis is not None
        joined = cut.movedim(0, axis).flatten(axis, axis + 1)
        order = sorted(range(like.ndim), key=lambda each: (-like.stride(each), each))
        back = [order.index(each) for each in range(like.ndim)]
        return joined.permute(order).contiguous().permute(back)

    def _resized(self, both: Any, single: Any, size: int) -> Any:
        """A stand-in for a batch of this size; anything else as it is."""
        if id(both) not in self._both.hollow:
            return both
        pairs = zip(single.shape, both.shape, strict=True)
        return stand_in(torch.Size(m + (n - m) * (size - 1) for m, n in pairs), both)

    def _check(self, features: Features) -> None:
        """All but the rows must be as in the first run."""
        for place in self._kinds:
            known, each = self._both.frontier[place], features.frontier[place]
            same = each.dtype == known.dtype
            if not same or (self._axes[place] is None and not close(known, each, TOLERANCE)):
                raise _mixed("what has no batch axis changes from batch to batch")
        leaves = tree_leaves(features.results)
        for known, each in zip(self._flat, leaves, strict=True):
            if not isinstance(known, Tensor) and known != each:
                raise _mixed(f"the model computes {known!r} of one batch and {each!r} of another")


def _mixed(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"features cannot be kept by example: {reason}; train without cached features."
    )


def _signature(inputs: Inputs) -> Hashable:
    """What decides the shape of an example's features."""
    found = [(e, batched) for e, batched in leaves_of(inputs) if isinstance(e, Tensor)]
    kind = found[0][0].device.type
    cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    shapes = [(e.shape[batched:], e.dtype, e.device) for e, batched in found]
    return str(cast), str(shapes), str(list(inputs) if isinstance(inputs, Mapping) else len(found))


def _keys(inputs: Inputs) -> list[bytes]:
    """A hash for each example, of its rows and of all that has no batch axis."""
    size = batch_size(inputs)
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(size)]
    for each, batched in leaves_of(inputs):
        if batched:
            pieces = list(_bytes(each))
        else:
            pieces = [_bytes(each[None])[0] if isinstance(each, Tensor) else repr(each).encode()]
            pieces *= size
        for row, piece in zip(hashes, pieces, strict=True):
            row.update(piece)
    return [row.digest() for row in hashes]


def _bytes(tensor: Tensor) -> Any:
    """The memory of each row, (rows, bytes)."""
    flat = tensor.detach().cpu().reshape(len(tensor), -1).contiguous()
    return flat.view(torch.uint8).numpy()
