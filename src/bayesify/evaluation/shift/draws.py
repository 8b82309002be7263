"""Random numbers that belong to an image of a data set, however the data are cut into batches.

They are drawn with numpy's Philox (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), which is counter-based: its stream is a function of (key, counter). The key is (seed,
name, severity), and each image starts at a counter of its own: its position in the data, 2^64
blocks from the next. So no state passes from image to image, streams never overlap, and a new
generator for each image costs only some 20 microseconds.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Random numbers for the images of one batch, the same wherever the batch was cut.

    Every call starts the streams anew, so a corruption draws all it needs at once.

    Args:
        seed: Another seed, other numbers.
        name: Of the corruption.
        severity: From 1 to 5.
        start: Position of the first image of the batch in the data.

    Example:
        >>> whole = Draws(0, "gaussian_noise", 1).normal(torch.Size((3, 2)))
        >>> last = Draws(0, "gaussian_noise", 1, start=2).normal(torch.Size((1, 2)))
        >>> torch.equal(whole[2:], last)
        True
    """

    seed: int
    name: str
    severity: int
    start: int = 0

    def normal(self, shape: torch.Size) -> Tensor:
        """Standard normal numbers, `shape` = (B, ...)."""
        return self._stack(shape[0], lambda each, _: each.standard_normal(shape[1:], np.float32))

    def uniform(self, shape: torch.Size) -> Tensor:
        """Uniform numbers in [0, 1), `shape` = (B, ...)."""
        return self._stack(shape[0], lambda each, _: each.random(shape[1:], np.float32))

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts with means `rate` (B, ...), as float32."""
        rates = rate.double().numpy()
        return self._stack(
            len(rates), lambda each, i: each.poisson(rates[i]).astype(np.float32, copy=False)
        )

    def _stack(
        self, count: int, draw: Callable[[np.random.Generator, int], np.ndarray]
    ) -> Float[Tensor, "batch ..."]:
        return torch.from_numpy(
            np.stack([draw(each, i) for i, each in enumerate(self._generators(count))])
        )

    def _generators(self, count: int) -> Iterator[np.random.Generator]:
        # The family enters by a checksum of its name: it outlives new families and reordering.
        key = (self.seed % 2**64) << 64 | zlib.crc32(self.name.encode()) << 3 | self.severity
        for position in range(self.start, self.start + count):
            yield np.random.Generator(np.random.Philox(counter=position << 64, key=key))
