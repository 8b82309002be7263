"""A histogram in the plane that keeps the moments of its points: counts, means and scatter of bins.

Tens of millions of points are read in chunks, and only their moments in the cells of a fine grid
are kept: of about 100,000 non-empty bins the count, the mean and the scatter (the covariance times
the count). What works on these costs the same for any number of points, and no moment of all points
up to the second is lost.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, Num
from torch import Tensor

from bayesify.core.errors import DataError, OptionError, ShapeError

GRID = (1024, 256)
"""Bins in either direction, unless others are asked for."""

POINTS = 2**16
"""How many points are binned at a time."""

SAMPLE = 2**18
"""Of how many points at most the quantiles are taken."""

Chunks = Iterable[Tensor] | Callable[[], Iterable[Tensor]]
"""Points (n, 2), piece by piece: something to iterate over twice, or a function that gives it."""

Limits = tuple[tuple[float, float], tuple[float, float]]
"""Lowest and highest value of the first coordinate, and of the second."""


@dataclass(frozen=True)
class Histogram:
    """The moments of points in the non-empty bins of a grid.

    Attributes:
        lower: The corner where the grid starts.
        width: Of one bin in either direction, in the unit of the points.
        shape: How many bins the grid has in either direction.
        place: Of every bin of the grid, row by row: which of the non-empty ones it is, or -1.
        count: How many points a bin holds; float64, as everything below.
        mean: Theirs, which for a border bin may lie beyond the grid.
        scatter: The sum of (x - mean) (x - mean)' over them.
    """

    lower: tuple[float, float]
    width: tuple[float, float]
    shape: tuple[int, int]
    place: Int32[Tensor, " cells"]
    count: Float[Tensor, " bins"]
    mean: Float[Tensor, "bins 2"]
    scatter: Float[Tensor, "bins 2 2"]

    @classmethod
    def of(
        cls,
        chunks: Chunks,
        *,
        limits: Limits | None = None,
        tail: float = 1e-4,
        shape: tuple[int, int] = GRID,
    ) -> "Histogram":
        """Count points.

        Args:
            chunks: The points, of any floating type. Read once where limits are given, else twice.
            limits: What the grid spans. Points beyond count in the bins at its border.
            tail: Without limits, the part of the points left outside at each of the four sides.
            shape: How many bins in either direction.

        Raises:
            DataError: There are no points, or they are not finite.
            OptionError: `limits`, `tail` or `shape` make no sense, or `chunks` is an iterator, good
                for one pass, where two are needed.
            ShapeError: A chunk is not (n, 2).

        Example:
            >>> points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [1.0, 1.0]])
            >>> histogram = Histogram.of([points], limits=((0, 1), (0, 1)), shape=(4, 4))
            >>> histogram.count.tolist(), histogram.bins(points).tolist()
            ([2.0, 1.0], [0, 0, 1])
        """
        if min(shape) < 1:
            raise OptionError(f"expected at least one bin each way, got shape={shape}; pass more.")
        (low, high), (bottom, top) = _quantiles(chunks, tail) if limits is None else limits
        if not (-math.inf < low <= high < math.inf and -math.inf < bottom <= top < math.inf):
            raise OptionError(
                f"expected finite limits ((low, high), (low, high)), got {limits}; leave them out "
                f"to take quantiles."
            )
        width = (high - low or 1.0) / shape[0], (top - bottom or 1.0) / shape[1]
        cells = shape[0] * shape[1]
        totals = torch.zeros(6, cells, dtype=torch.float64)
        for points in _blocks(chunks):
            cell, x, y = _located(points, (low, bottom), width, shape)
            terms = torch.ones_like(x), x, y, x * x, x * y, y * y
            for total, each in zip(totals, terms, strict=True):
                total.scatter_add_(0, cell, each)
        sums = totals.numpy()
        used = np.flatnonzero(sums[0])
        if not len(used):
            raise DataError("expected at least one point, got none; check what the chunks yield.")
        n, x, y, xx, xy, yy = sums[:, used]
        row, column = np.divmod(used, shape[1])
        mean = np.stack([row + 0.5 + x / n, column + 0.5 + y / n], axis=1) * width
        off = xx - x * x / n, xy - x * y / n, yy - y * y / n
        place = np.full(cells, -1, dtype=np.int32)
        place[used] = np.arange(len(used), dtype=np.int32)
        return cls(
            lower=(low, bottom),
            width=width,
            shape=shape,
            place=torch.from_numpy(place),
            count=torch.from_numpy(n),
            mean=torch.from_numpy(mean + np.array([low, bottom])),
            scatter=torch.from_numpy(symmetric_matrices(*off) * np.multiply.outer(width, width)),
        )

    def bins(self, points: Num[Tensor, "points 2"]) -> Int32[Tensor, " points"]:
        """The bin of every point, an index into `count`, `mean` and `scatter`.

        Raises:
            DataError: A point is not finite, or in a bin where the counted points were not.
        """
        index = self.place.new_empty(len(points))
        for block, out in zip(_blocks([points]), index.split(POINTS), strict=False):
            cell, _, _ = _located(block, self.lower, self.width, self.shape)
            torch.index_select(self.place, 0, cell, out=out)
        if len(index) and index.min() < 0:
            raise DataError("expected points that were counted, got others; count these as well.")
        return index


def symmetric_matrices(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The matrices [[a, b], [b, c]], stacked (n, 2, 2)."""
    return np.stack([a, b, b, c], axis=1).reshape(-1, 2, 2)


def _blocks(chunks: Chunks) -> Iterator[Tensor]:
    """The points, few enough at a time, and once they are known to be usable."""
    for chunk in chunks() if callable(chunks) else chunks:
        if chunk.dim() != 2 or chunk.shape[1] != 2:
            raise ShapeError(f"expected points (n, 2), got {tuple(chunk.shape)}; stack the two.")
        for block in chunk.detach().cpu().split(POINTS) if len(chunk) else ():
            low, high = block.aminmax()
            if not (low > -math.inf and high < math.inf):  # neither is so if there is a NaN
                raise DataError("expected finite points, got inf or NaN; leave these out.")
            yield block


def _located(
    points: Tensor, lower: tuple[float, float], width: tuple[float, float], shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Which cell a point is in, and how far from its centre, in widths."""
    x, y = (points[:, i].to(torch.float64, copy=True) for i in (0, 1))
    x.sub_(lower[0]).div_(width[0])
    y.sub_(lower[1]).div_(width[1])
    row, column = (
        each.clamp(0, size - 1).floor_() for each, size in zip((x, y), shape, strict=True)
    )
    x.sub_(row).sub_(0.5)
    y.sub_(column).sub_(0.5)
    return row.mul_(shape[1]).add_(column).long(), x, y


def _quantiles(chunks: Chunks, tail: float) -> Limits:
    """Of every point, or of every 2nd, 4th, ... that leaves no more than enough."""
    if not 0 <= tail < 0.5:
        raise OptionError(f"expected a tail from 0 to less than 0.5, got {tail}; try 1e-4.")
    if isinstance(chunks, Iterator):
        raise OptionError("expected chunks for two passes, got an iterator; pass a list or limits.")
    kept, held, seen, stride = [], 0, 0, 1
    for points in _blocks(chunks):
        kept.append(points[-seen % stride :: stride].double())
        held, seen = held + len(kept[-1]), seen + len(points)
        while held > SAMPLE:
            kept, stride = [torch.cat(kept)[::2].clone()], 2 * stride
            held = len(kept[0])
    if not held:
        raise DataError("expected at least one point, got none; check what the chunks yield.")
    low, high = np.quantile(torch.cat(kept).numpy(), [tail, 1 - tail], axis=0)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
