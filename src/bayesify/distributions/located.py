"""What normal distributions around a mean of each weight have in common."""

from bayesify.core.types import Named
from bayesify.distributions.base import WeightDistribution
from bayesify.weights.named import copied
from bayesify.weights.store import Store


class Located(WeightDistribution):
    """A distribution with a mean `loc`, whose samples are in the weights' own coordinates.

    Args:
        loc: Means, in the shapes of the weights. Copied.
    """

    def __init__(self, loc: Named) -> None:
        super().__init__()
        self.loc = Store(copied(loc), trainable=True)

    @property
    def names(self) -> list[str]:
        """Names of the random weights."""
        return list(self.loc.named())

    def weights(self, draw_one: Named) -> Named:
        """A sample is in the weights' own coordinates already."""
        return draw_one

    def point(self) -> Named:
        """The means."""
        return {name: each.detach() for name, each in self.loc.named().items()}
