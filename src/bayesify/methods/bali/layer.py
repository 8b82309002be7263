"""One layer while it is learnt: how it acts in the network, and its running regression."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.types import Draw, Named
from bayesify.distributions.matrix_normal import Layer
from bayesify.numerics.layer_regression import LayerRegression
from bayesify.numerics.noise import single_or_better
from bayesify.tracing.linear_maps import LinearMap
from bayesify.weights.noise_scope import NoiseScope
from bayesify.weights.regression import RegressionWeight
from bayesify.weights.taped import Tape

SHARE = 0.5
"""How many effective parameters a layer of a regression may have, as a share of the data.

Factors learn P from all the data and V from all the data, so a layer can count as many parameters
as it has weights, however few the data are; more than there are data is an artefact.
"""

TINY = 1e-12

ROWS_PER_FEATURE = 5
"""How many rows for each of its features a layer's statistics rest on, at least."""


@dataclass
class LearntLayer:
    """A layer of a network, K members in front.

    Attributes:
        map: How its weight acts.
        law: Names of the weights that its law holds.
        shape: Of one member's weight.
        regression: What has been learnt; replaced at every step.
        is_output: Whether its output is the network's, so that its noise may be known.
        scope: Within what its noise is one draw in a forward pass.
        rows_per_example: Rows that one example gives: output positions of a convolution, uses.
    """

    map: LinearMap
    law: Layer
    shape: torch.Size
    regression: LayerRegression
    is_output: bool = False
    scope: NoiseScope = NoiseScope.BATCH
    rows_per_example: float = 1.0

    @property
    def name(self) -> str:
        """Of the weight."""
        return self.law.weight

    def features(self, tape: Tape) -> Tensor:
        """H, (K or 1, n, a): the rows of all uses of the weight.

        Raises:
            UnsupportedModelError: there was no use, as where layers are dropped at random.
        """
        if not (inputs := tape.inputs(self.name)):
            raise UnsupportedModelError(
                f"layer {self.name!r} has no part in a forward pass in training; leave it out with "
                f"`where`, or let the network drop no layers."
            )
        return torch.cat([_rows(each, self._features) for each in inputs], 1)

    def gradient(self, tape: Tape) -> Tensor:
        """G of the tape's last backward pass, (K, n, b)."""
        return torch.cat([_rows(each, self.map.rows) for each in tape.gradients(self.name)], 1)

    def outputs(self, tape: Tape) -> Tensor:
        """Z, (K, n, b): the rows of what came out of all uses of the weight, noise included."""
        return torch.cat([_rows(each, self.map.rows) for each in tape.results(self.name)], 1)

    def members(self, dtype: torch.dtype) -> Draw:
        """The law of each member in the network's own shapes and precision, leading axis K."""
        wide = single_or_better(dtype)
        factors = {"row": self.regression.row, "column": self.regression.column}
        return {"loc": self.means(dtype)} | {n: each.to(wide) for n, each in factors.items()}

    def means(self, dtype: torch.dtype) -> Named:
        """M as weights by name, (K, *shape)."""
        mean = self.regression.mean.to(dtype)
        weight, bias = self.map.weights(mean, self.shape, constant=self._constant)
        named = {self.law.weight: weight}
        return named if self.law.bias is None or bias is None else named | {self.law.bias: bias}

    def noisy(self, member: Draw, generator: torch.Generator) -> Named:
        """What the network is called with for one member: a weight with noise of its law."""
        loc = member["loc"]
        weight = RegressionWeight(  # type: ignore[reportCallIssue]  (of Tensor's own __init__)
            loc[self.name],
            member["row"],
            member["column"],
            self.map,
            constant=self._constant,
            generator=generator,
            scope=self.scope,
        )
        return loc | {self.name: weight}

    def draw_anew_(self, generator: torch.Generator) -> None:
        """Means as He et al. 2015, arXiv 1502.01852, eq. 10, begin: N(0, 2 / inputs), biases zero.

        The variance is half of that at the network's output, which no ReLU follows.
        """
        mean = self.regression.mean
        inputs = mean.shape[1] - self._constant
        drawn = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean)
        drawn *= math.sqrt((1 if self.is_output else 2) / inputs)
        drawn[:, inputs:] = 0  # the constant feature is the last
        self.regression = replace(self.regression, mean=drawn)

    def highest_rate(self, batch: int, num_data: int) -> float:
        """The forgetting rate at which P rests on just enough rows for its features.

        P remembers batch / rate examples; with fewer than a few rows per feature its small
        eigenvalues are chance, and P^-1 makes steps of them. All the data are enough.
        """
        features = self.regression.precision.shape[-1]
        wanted = ROWS_PER_FEATURE * features / self.rows_per_example
        return batch / min(wanted, num_data)

    def bounded(
        self, found: LayerRegression, *, examples: float, dims: int, least: float
    ) -> LayerRegression:
        """`found`, its prior narrower where it would have too many effective parameters.

        They are tr(F V) directions of a row of outputs, each with tr(P^-1 H^T H) parameters, and
        at most SHARE N dims. A narrower prior takes them from the mean and from the spread alike; a
        smaller V would take them from the spread alone, and the noise would be told that the
        mean had fitted fewer than it has.

        Args:
            found: What has been learnt.
            examples: That the statistics stand for, N.
            dims: Numbers that the network predicts for one example.
            least: The prior's precision where that leaves fewer parameters.
        """
        most = SHARE * examples * self.rows_per_example  # V of an output is its own noise
        if not self.is_output:
            most = SHARE * examples * dims / found.directions.clamp_min(TINY)
        return found.with_at_most(most, least=least)

    @property
    def _constant(self) -> bool:
        return self.law.bias is not None

    def _features(self, x: Tensor) -> Tensor:
        return self.map.features(x, constant=self._constant)


def _rows(values: Tensor, to_rows: Callable[[Tensor], Tensor]) -> Tensor:
    """Rows of every member, (K, n, width), from (K, B, ...)."""
    rows = to_rows(values.flatten(0, 1))
    return rows.view(len(values), -1, rows.shape[-1])
