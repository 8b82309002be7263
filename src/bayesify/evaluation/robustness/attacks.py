"""Adversarial inputs for a posterior: the smallest changes that make the truth least probable.

    maximise  -log p(y | x + d),   p(y|x) = 1/S sum_s p(y|x, w_s),   ||d|| <= eps,  x + d in the box
    FGSM      d = eps * direction(g)                                 g = gradient of the loss in x
    PGD       d <- project(d + step * direction(g)), again and again, from a random d in the ball

with direction(g) = sign(g) for linf and g / ||g|| for l2.

Sources: Goodfellow et al. 2015, arXiv 1412.6572 (FGSM); Madry et al. 2018, arXiv 1706.06083 (PGD,
restarts); Athalye et al. 2018, arXiv 1707.07397 and 1802.00420 (the gradient of a randomised model
must be averaged over its randomness).

The loss is that of the *averaged* predictive: what is attacked is the Bayesian prediction and not
one network of it. All S draws enter every gradient, and they are the same at each step: with no
generator those that the posterior predicts with, so the attacker knows all of the model. Gradients
of single draws are noisy, miss the weak spot, and make a posterior seem more robust than it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.core.streams import stream
from bayesify.core.types import Inputs
from bayesify.data.examples import Normalise
from bayesify.evaluation.robustness.loss_gradient import PRECISIONS, Slope
from bayesify.posteriors.base import Posterior

NORMS = ("linf", "l2")

STEP_SHARE = 2.5
"""Default step size times steps, in units of eps: from any start the far side is within reach."""

OUTSIDE = 1e-3
"""How far outside of its box an input may lie, in units: rounding, and not a wrong box."""


@dataclass(frozen=True, eq=False)
class InputBox:
    """Which inputs exist, and how large a change of size 1 is.

    Args:
        low: Least values the model may be given; broadcastable to one example, e.g. (C, 1, 1).
        high: Greatest values; likewise.
        unit: An eps of 1 is this much of what the model sees; likewise, positive.

    Raises:
        OptionError: `unit` is not positive and finite, or `low` lies above `high`.
    """

    low: Tensor
    high: Tensor
    unit: Tensor

    def __post_init__(self) -> None:
        if not ((self.unit > 0) & self.unit.isfinite()).all():
            raise OptionError(f"InputBox(unit={self.unit.tolist()}): expected positive numbers.")
        if not (self.low <= self.high).all():
            raise OptionError(
                f"InputBox: expected `low` nowhere above `high`, got {self.low.tolist()} and "
                f"{self.high.tolist()}; swap them."
            )

    @classmethod
    def of(cls, normalise: Normalise) -> Self:
        """The box of images in [0, 1] after `normalise`; eps is then in units of the pixels.

        Example:
            >>> box = InputBox.of(Normalise(torch.tensor([0.5]), torch.tensor([0.25])))
            >>> box.low, box.high, box.unit
            (tensor([-2.]), tensor([2.]), tensor([4.]))
        """
        black = torch.zeros_like(normalise.loc, dtype=torch.get_default_dtype())
        return cls(normalise(black), normalise(black + 1), (1 / normalise.scale).float())

    def to(self, like: Tensor | torch.device | str) -> "InputBox":
        """The same on a device, or with the device and dtype of a tensor."""
        return InputBox(self.low.to(like), self.high.to(like), self.unit.to(like))


def fgsm(
    posterior: Posterior,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    box: InputBox | None = None,
    num_samples: int = 20,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    precision: str = "float32",
) -> Tensor:
    """One step of length `eps` up the loss: the fast gradient (sign) method.

    Arguments as `pgd`.

    Example:
        >>> from bayesify import Categorical, MeanField, WeightPosterior
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(net.weight)
        >>> posterior = WeightPosterior(net, MeanField.around(net, scale=0.01), Categorical())
        >>> fgsm(posterior, torch.zeros(1, 2), torch.tensor([0]), eps=0.5)
        tensor([[-0.5000, 0.5000]])
    """
    once: dict[str, Any] = {"steps": 1, "step_size": eps, "random_start": False}
    once |= {"num_samples": num_samples, "chunk_size": chunk_size, "generator": generator}
    return pgd(posterior, x, y, eps=eps, norm=norm, box=box, precision=precision, **once)


@torch.inference_mode(False)
def pgd(
    posterior: Posterior,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    start: Tensor | None = None,
    seed: int = 0,
    box: InputBox | None = None,
    num_samples: int = 20,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    precision: str = "float32",
) -> Tensor:
    """Projected gradient ascent on the loss of each example on its own.

    No gradient is left on any parameter, and the caller may be under `torch.no_grad` or
    `torch.inference_mode`.

    Args:
        posterior: What is attacked; its outputs must be differentiable in x.
        x: Inputs as the model sees them, one floating-point tensor (B, ...).
        y: True targets, (B, ...).
        eps: Radius of the ball, in units of the box.
        norm: "linf" (greatest change of a number) or "l2" (length of the change of an example).
        steps: Gradient steps.
        step_size: In units of the box; None for 2.5 * eps / steps.
        restarts: Starts, each anew; for every example the one that ends with the highest loss
            counts. More than one needs random starts.
        random_start: Whether to start anywhere in the ball rather than at x.
        start: Where in the ball to start instead of drawing it, as a share of eps: points of the
            unit ball (see `unit_ball`), shaped as x, or (restarts, *x.shape).
        seed: Of the random starts, which are drawn for the batch as a whole.
        box: Which inputs exist, and the units of eps; None: all of them, in the model's units.
        num_samples: Weight samples S in each gradient.
        chunk_size: Weight samples evaluated at once; None: the posterior decides.
        generator: Source of the weight samples, set back before each step so that they stay the
            same; None for the posterior's own fixed ones.
        precision: Of the gradients: "float32", or "bfloat16" by torch's autocast, which is twice
            as fast on hardware that has it.

    Returns:
        Adversarial inputs, shaped as x, within the ball and the box.

    Raises:
        OptionError: an option is out of range.
        DataError: x is not one floating-point tensor, or lies outside of the box.
        ShapeError: `box`, `start` and x do not fit.
        UnsupportedModelError: the outputs have no gradient in x.
    """
    _check_options(eps, norm, steps, step_size, restarts, num_samples, precision)
    if restarts > 1 and start is None and not random_start:
        raise OptionError(f"restarts={restarts}: expected 1 when every start is x itself.")
    check_input(x, box)
    clean, y = x.detach().clone().to(posterior.device), y.clone().to(posterior.device)
    nowhere = clean.new_tensor(math.inf)
    box = InputBox(-nowhere, nowhere, torch.ones_like(nowhere)) if box is None else box.to(clean)
    step = STEP_SHARE * eps / steps if step_size is None else step_size
    place = _placing(clean, box, eps, norm)
    slope = Slope(posterior, y, num_samples, chunk_size, generator, precision)

    best, highest = clean, clean.new_full(clean.shape[:1], -math.inf)
    for noise in _starts(x, norm, restarts, random_start, start, seed):
        adversarial = place(eps * noise.to(clean))
        for _ in range(steps):
            direction = _direction(slope.gradient(adversarial) * box.unit, norm)
            adversarial = place((adversarial - clean) / box.unit + step * direction)
        if restarts == 1:
            return adversarial.to(x.device)
        with torch.no_grad():
            reached = slope.loss(adversarial)
        higher = reached > highest
        best = torch.where(_along(higher, clean), adversarial, best)
        highest = torch.where(higher, reached, highest)
    return best.to(x.device)


def unit_ball(
    shape: tuple[int, ...], norm: str, generator: torch.Generator
) -> Float[Tensor, "points ..."]:
    """Points uniform in the unit ball of the numbers of one example; `shape` is (points, ...).

    For l2: a uniform direction, and a radius U^(1/d), since volume grows as radius^d.
    """
    if norm == "linf":
        return 2 * torch.rand(shape, generator=generator) - 1
    direction = _direction(torch.randn(shape, generator=generator), "l2")
    volume = torch.rand(shape[0], generator=generator)
    return direction * _along(volume ** (1 / math.prod(shape[1:])), direction)


def check_input(x: Inputs, box: InputBox | None = None) -> None:
    """Refuse what cannot be moved by a gradient, or is not in the box to begin with.

    Raises:
        DataError: x is not one floating-point tensor (B, ...), or lies outside of the box.
        ShapeError: the box does not broadcast to one example.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(
            f"expected one floating-point tensor (batch, ...) to attack, got {got}; attack the "
            f"embeddings of discrete inputs, and one of several inputs with the others fixed."
        )
    if box is None:
        return
    for name in ("low", "high", "unit"):
        shape = getattr(box, name).shape
        pairs = zip(reversed(shape), reversed(x.shape[1:]), strict=False)
        if len(shape) >= x.ndim or any(has not in (1, wanted) for has, wanted in pairs):
            raise ShapeError(
                f"expected a box that broadcasts to one example {tuple(x.shape[1:])}, got "
                f"`{name}` {tuple(shape)}; give one number a channel the shape (C, 1, 1)."
            )
    box = box.to(x)
    outside = (torch.maximum(box.low - x, x - box.high) / box.unit).max() if len(x) else 0
    if outside > OUTSIDE:
        raise DataError(
            f"expected inputs within the box, got some {outside:.3g} units outside; the box must "
            f"be that of the same normalisation: InputBox.of(splits.normalise)."
        )


def _check_options(
    eps: float,
    norm: str,
    steps: int,
    step_size: float | None,
    restarts: int,
    num_samples: int,
    precision: str,
) -> None:
    for name, got, known in (("norm", norm, NORMS), ("precision", precision, PRECISIONS)):
        if got not in known:
            raise OptionError(f"{name}={got!r}: expected one of {', '.join(map(repr, known))}.")
    for name, value in (("eps", eps), ("step_size", step_size)):
        if value is not None and not 0 < value < math.inf:
            raise OptionError(f"{name}={value}: expected a finite number above 0.")
    for name, least in (("steps", steps), ("restarts", restarts), ("num_samples", num_samples)):
        if least < 1:
            raise OptionError(f"{name}={least}: expected at least 1.")


def _starts(
    x: Tensor, norm: str, restarts: int, random_start: bool, start: Tensor | None, seed: int
) -> Tensor:
    """Where each restart begins, (restarts, *x.shape), as a share of eps."""
    if start is not None:
        if start.shape == x.shape and restarts == 1:
            return start.unsqueeze(0)
        if start.shape != (restarts, *x.shape):
            raise ShapeError(
                f"expected `start` of shape {(restarts, *x.shape)}, got {tuple(start.shape)}."
            )
        return start
    if not random_start:
        return torch.zeros_like(x).unsqueeze(0)
    generator = stream(seed, "attack")
    points = unit_ball((restarts * len(x), *x.shape[1:]), norm, generator)
    return points.view(restarts, *x.shape)


def _placing(x: Tensor, box: InputBox, eps: float, norm: str) -> Callable[[Tensor], Tensor]:
    """From a change in units to the input it leads to, within the ball and the box.

    Where x lies beyond the box by a rounding error, x is the bound: to bring it back would be a
    change of our own. So the box only ever brings an input nearer to x, and it stays in the ball.
    """
    low, high = torch.minimum(box.low, x), torch.maximum(box.high, x)

    def place(change: Tensor) -> Tensor:
        if norm == "linf":
            change = change.clamp(-eps, eps)
        else:
            change = change * (eps / _length(change)).clamp_max(1)
        return torch.clamp(x + change * box.unit, low, high)

    return place


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """The change of size 1 with the greatest slope; none where there is no slope."""
    if norm == "linf":
        return gradient.sign()
    # squares of the gradients of a confident model are too small for floating-point numbers
    largest = _along(gradient.flatten(1).abs().amax(1), gradient)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / _length(scaled)


def _length(change: Tensor) -> Tensor:
    """l2 norm of each example, above 0, with axes of size 1."""
    length = _along(torch.linalg.vector_norm(change.flatten(1), dim=1), change)
    return length.clamp_min(torch.finfo(change.dtype).tiny)


def _along(each: Tensor, like: Tensor) -> Tensor:
    """One number an example (B,), with axes of size 1 to go with `like` (B, ...)."""
    return each.view(-1, *[1] * (like.ndim - 1))
