"""Confidence far away from the data: what a posterior predicts for a * x as a grows.

Along a ray a * x a network with ReLU-like activations ends on a line, f_k(a x) = a g_k + c_k, with
slopes g and remainders c that depend on the weights w. By dominated convergence the predictive of a
Bayesian network tends to

    lim p(y = k | a x) = E_q[ 1{k in A} exp(c_k) / sum_{j in A} exp(c_j) ],   A = argmax_k g_k(x; w)

the probability that class k has the largest slope; where several have, the remainders share it out.
With one setting of the weights it is 1 in every direction where the largest slope is unique (Hein
et al. 2019, arXiv 1812.05720, theorem 3.1). With a full-support Gaussian over a first layer that is
affine -> ReLU it is below 1 in *every* direction: with positive probability all units are inactive
along x, and then g = 0. How far below, nothing guarantees; here it is measured.

The limit under a random first layer is our own statement, in the spirit of Kristiadi et al. 2020
(arXiv 2002.10118), who bound a linearisation. Everything is computed in double precision, with the
very weight samples that the posterior predicts with.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_map

from bayesify.core.batches import split_batch
from bayesify.core.clones import clone
from bayesify.core.errors import DataError, OptionError, ShapeError, UnsupportedModelError
from bayesify.core.streams import stream
from bayesify.core.types import Draw, Named
from bayesify.data.loading import Data, as_loader
from bayesify.distributions import WeightDistribution
from bayesify.evaluation.findings import Findings
from bayesify.likelihoods import Categorical
from bayesify.likelihoods.predictive import ClassPredictive
from bayesify.posteriors.base import Posterior
from bayesify.posteriors.weight import WeightPosterior

FAR = (1e6, 1e9, 1e12)
"""Radii from which on rays may be affine; the first one that is decides, for accuracy.

The further, the more of c drowns in the rounding of a * g. But a normalisation layer, say, gets to
its limit like 1 / a only.
"""

STRAIGHT = 1e-9
"""Deviation from a line, relative to the outputs, that rounding may cause."""

LEVEL = 10 * STRAIGHT
"""Slopes whose difference moves the outputs by less than this, relative to them, are equal."""

NEARLY_SURE = 0.99
"""A direction with a limit above this counts as confident."""


def confidence_along(
    posterior: Posterior,
    directions: Float[Tensor, "directions *input"],
    radii: Sequence[float],
    *,
    num_samples: int = 128,
) -> Float[Tensor, "radii directions"]:
    """The largest probability max_k p(y = k | a * direction), in double precision, on the CPU.

    Args:
        posterior: With a categorical likelihood.
        directions: Inputs x; only a * x is seen, so their lengths are the unit of the radii.
        radii: Factors a, at least 0.
        num_samples: Weight samples S, those that the posterior predicts with.

    Raises:
        UnsupportedModelError: when it is no `WeightPosterior`.
        OptionError: the likelihood is not categorical, or a radius is negative or not finite.
        DataError: a direction is zero or not finite.
    """
    wide, directions = _in_double(posterior), _checked(directions)
    _check_radii(radii)
    at = [_outputs(wide, radius * directions, num_samples) for radius in radii]
    return torch.stack([_averaged(wide, outputs).amax(1) for outputs in at])


def far_away_limit(
    posterior: Posterior,
    directions: Float[Tensor, "directions *input"],
    *,
    num_samples: int = 128,
) -> Float[Tensor, "directions classes"]:
    """The limit of p(y | a * direction) for a -> infinity, in double precision, on the CPU.

    Exact for the weight samples at hand, as long as no kink of the network that matters lies beyond
    4e6 times the direction.

    Args:
        posterior: With a categorical likelihood.
        directions: Inputs x, not zero.
        num_samples: Weight samples S, those that the posterior predicts with.

    Raises:
        UnsupportedModelError: when it is no `WeightPosterior`, or the network is not affine far
            away, such as one with squares in it.
        OptionError: the likelihood is not categorical.
        DataError: a direction is zero or not finite.

    Example:
        >>> from torch import nn
        >>> from bayesify.distributions import MeanField
        >>> net = nn.Linear(2, 2)
        >>> _ = nn.init.eye_(net.weight)  # class 0 grows along the first axis, class 1 does not
        >>> posterior = WeightPosterior(net, MeanField.around(net, scale=1e-3), Categorical())
        >>> far_away_limit(posterior, torch.tensor([[1.0, 0.0]]))
        tensor([[1., 0.]], dtype=torch.float64)
    """
    wide, directions = _in_double(posterior), _checked(directions)
    value, rise = _final_lines(wide, directions, num_samples)
    behind = rise.amax(2, keepdim=True) - rise
    slower = behind > LEVEL * value.abs().amax(2, keepdim=True)
    # what the fastest classes have in common, their slope, no softmax sees: c alone decides
    return _averaged(wide, value.masked_fill(slower, -torch.inf))


def overconfidence(
    posterior: Posterior,
    data: Data,
    *,
    directions: int = 64,
    radii: Sequence[float] = (1, 3, 10, 30, 100, 1000),
    num_samples: int = 128,
    seed: int = 0,
) -> Findings:
    """How sure a posterior is in random directions, far beyond the data.

    Directions are uniform on the sphere through the data: their length is the root mean square
    norm of the inputs, so radius 1 is about as far out as the data and 1000 a thousand times.

    Args:
        posterior: With a categorical likelihood.
        data: As the model sees it; tells the shape and the norm of the inputs. No label is used.
        directions: How many.
        radii: Factors a of the curve, at least 0.
        num_samples: Weight samples S, those that the posterior predicts with.
        seed: Of the directions.

    Returns:
        `far_confidence`, the mean over directions of the largest probability in the limit, and
        `far_confident_share`, the share of directions where that is above 0.99. The curve
        `far_away` has for every `radius` the `mean` over directions, and the `low` and `high` 10 %
        quantiles; and of the limit its `limit_mean` and all values, sorted (`limit`).

    Raises:
        UnsupportedModelError: as in `far_away_limit`, or inputs are not one tensor of real numbers.
        OptionError: the likelihood is not categorical, or a number is out of range.
        DataError: the inputs are all zero or not finite.

    Example:
        >>> from torch import nn
        >>> from bayesify.distributions import MeanField
        >>> net = nn.Linear(2, 2)
        >>> posterior = WeightPosterior(net, MeanField.around(net, scale=1e-6), Categorical())
        >>> found = overconfidence(posterior, (torch.randn(20, 2), torch.zeros(20)))
        >>> found.metrics["far_confidence"] > 0.99
        True
    """
    if directions < 1:
        raise OptionError(f"directions={directions}: expected at least 1.")
    _check_radii(radii)
    check_followed(posterior)
    rays = _random_directions(data, directions, seed)
    along = confidence_along(posterior, rays, radii, num_samples=num_samples)
    limit = far_away_limit(posterior, rays, num_samples=num_samples).amax(1)
    curve = {
        "radius": [float(radius) for radius in radii],
        "mean": along.mean(1).tolist(),
        "low": along.quantile(0.1, 1).tolist(),
        "high": along.quantile(0.9, 1).tolist(),
        "limit_mean": float(limit.mean()),
        "limit": limit.sort().values.tolist(),
    }
    metrics = {
        "far_confidence": float(limit.mean()),
        "far_confident_share": float((limit > NEARLY_SURE).double().mean()),
    }
    return Findings(metrics, {"far_away": curve})


Lines = Float[Tensor, "samples directions classes"]


def _final_lines(
    posterior: WeightPosterior, directions: Tensor, num_samples: int
) -> tuple[Lines, Lines]:
    """Outputs a g + c on each ray's final line, and how far they rise over one more radius, a g."""
    value = rise = torch.tensor(torch.nan, dtype=torch.float64)
    for radius in FAR:
        near, middle, far = (
            _outputs(posterior, factor * radius * directions, num_samples) for factor in (1, 2, 4)
        )
        new = _is_straight(near, middle, far) & value.isnan()
        value, rise = torch.where(new, near, value), torch.where(new, middle - near, rise)
        if not value.isnan().any():
            return value, rise
    bent = value.isnan().any(2)
    raise UnsupportedModelError(
        f"{type(posterior.model).__name__} is not affine far away: {int(bent.sum())} of "
        f"{bent.numel()} rays bend beyond {FAR[-1]:g} times their direction, or overflow; the "
        f"limit is known for networks of affine layers, ReLU-like or bounded activations and "
        f"normalisation. Look at `confidence_along` instead."
    )


def _is_straight(near: Lines, middle: Lines, far: Lines) -> Bool[Tensor, "samples directions 1"]:
    """Whether outputs at radii a, 2 a and 4 a lie on a line, all classes of a ray together."""
    off = (far - (middle + 2 * (middle - near))).abs().amax(2, keepdim=True)
    return off <= STRAIGHT * far.abs().amax(2, keepdim=True)  # false where something is not finite


def _outputs(posterior: WeightPosterior, x: Tensor, num_samples: int) -> Lines:
    with torch.no_grad():
        outputs = posterior.outputs(x, num_samples=num_samples)
    if outputs.dtype != torch.float64:
        raise UnsupportedModelError(
            f"{type(posterior.model).__name__} returned {outputs.dtype} for float64 inputs and "
            f"weights; the limit needs double precision. Remove the conversion from the model."
        )
    if outputs.ndim != 3:
        raise ShapeError(
            f"expected outputs (samples, batch, classes), got {tuple(outputs.shape)}; confidence "
            f"far away is defined for one prediction per input."
        )
    return outputs


def _averaged(posterior: WeightPosterior, logits: Lines) -> Tensor:
    predictive = posterior.likelihood.predictive(logits)
    assert isinstance(predictive, ClassPredictive)  # of a categorical likelihood
    return predictive.probs.cpu()


class _Widened(WeightDistribution):
    """The samples of `narrow` as double-precision weights: the same numbers, not new ones.

    A distribution turned to double precision would draw other noise from the same generator.
    """

    def __init__(self, narrow: WeightDistribution) -> None:
        super().__init__()
        self.narrow = narrow
        self.wide = clone(narrow).double()

    @classmethod
    def from_state(cls, state: Named) -> Self:
        raise NotImplementedError("it is never saved")

    @property
    def names(self) -> list[str]:
        return self.wide.names

    @property
    def perturbed(self) -> list[str]:
        return self.wide.perturbed

    def attach_(self, weights: Named) -> None:
        self.wide.attach_(weights)

    def size(self, n: int) -> int:
        return self.narrow.size(n)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Draw:
        return _as_double(self.narrow.sample(n, generator=generator))

    def draws(
        self, n: int, chunk_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[Draw]:
        yield from map(_as_double, self.narrow.draws(n, chunk_size, generator=generator))

    def weights(self, draw_one: Draw) -> Named:
        return self.wide.weights(draw_one)

    def point(self) -> Named:
        return self.wide.point()


def _as_double(draw: Draw) -> Draw:
    return tree_map(lambda each: each.double() if each.is_floating_point() else each, draw)


def _in_double(posterior: Posterior) -> WeightPosterior:
    posterior = check_followed(posterior)
    return WeightPosterior(
        clone(posterior.model).double(),
        _Widened(posterior.q),
        posterior.likelihood,
        readout=posterior.readout,
        vectorize=posterior.vectorize,
    )


def check_followed(posterior: Posterior) -> WeightPosterior:
    """What is followed far away, or why nothing can be."""
    if not isinstance(posterior, WeightPosterior) or posterior.tangent:
        got = "the tangent of one" if isinstance(posterior, WeightPosterior) else "a"
        raise UnsupportedModelError(
            f"expected a WeightPosterior, whose network itself is called in double precision, got "
            f"{got} {type(posterior).__name__}."
        )
    if not isinstance(posterior.likelihood, Categorical):
        raise OptionError(
            f"confidence far away needs a categorical likelihood, got "
            f"{type(posterior.likelihood).__name__}."
        )
    return posterior


def _check_radii(radii: Sequence[float]) -> None:
    if not len(radii) or not all(0 <= radius < float("inf") for radius in radii):
        raise OptionError(f"radii={radii}: expected at least one finite number, none below 0.")


def _checked(directions: Tensor) -> Tensor:
    directions = directions.detach().double()
    norms = directions.flatten(1).norm(dim=1)
    if not len(norms) or not bool((norms.isfinite() & (norms > 0)).all()):
        raise DataError(
            f"expected finite directions other than zero, got {len(norms)} with norms "
            f"{norms.tolist()[:8]}."
        )
    return directions


def _random_directions(data: Data, count: int, seed: int) -> Tensor:
    """(count, *input), normal vectors brought to the root mean square norm of the inputs."""
    total, examples, shape = 0.0, 0, torch.Size()
    for batch in as_loader(data, batch_size=256, shuffle=False):
        inputs, _ = split_batch(batch)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            got = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
            raise UnsupportedModelError(
                f"expected inputs that are one tensor of real numbers, which can be scaled, got "
                f"{got}."
            )
        total += float(inputs.double().square().sum())
        examples, shape = examples + len(inputs), inputs.shape[1:]
    norm = (total / max(1, examples)) ** 0.5
    if not 0 < norm < float("inf"):
        raise DataError(
            f"expected finite inputs that are not all zero, got a root mean square norm of {norm}."
        )
    normal = torch.randn(count, *shape, generator=stream(seed, "directions"), dtype=torch.float64)
    lengths = normal.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
    return norm * normal / lengths
