"""Diagonal Laplace: independent Gaussians around a trained net, as wide as its curvature allows.

Source: MacKay 1992, Neural Computation 4(3) (Laplace's approximation of a network's posterior);
Ritter et al. 2018 (ICLR, "A scalable Laplace approximation for neural networks"), where the
diagonal Fisher is the rival of Kronecker factors; Daxberger et al. 2021, arXiv 2106.14806,
section 2 (post hoc, diagonal form).

    F_j       = mean_b E_{y ~ p(y | x_b, w*)} [ (d log p(y | x_b, w*) / dw_j)^2 ]
    sigma_j^2 = factor^2 / (N F_j + 1 / prior_scale_j^2)
    q(w)      = prod_j N(w_j; w*_j, sigma_j^2)

The labels are drawn from the model itself, so that F is the Fisher information, which for the usual
likelihoods equals the generalised Gauss-Newton matrix; gradients at the data's own labels (the
"empirical Fisher") would vanish on a net that has learnt them by heart.
Completions of ours: the mean over b runs over `examples` of the training data, so that fewer make
F noisier, not smaller; the prior is relative to each tensor, as in `MeanFieldVI`, and only limits
the width where the data say nothing (its centre does not enter); `factor` is chosen on held-out
examples (`rescaling.py`). The diagonal forgets that weights make up for one another, and at factor
1 noise in all weights of a net with batch norm at once is far too much. Predictions are those of
the net under sampled weights, not of its linearisation.
Cost: one forward and backward pass for each example, label by label, once; as many numbers again as
there are random weights. Choosing the factor takes some six predictions of the held-out examples,
with `num_samples` passes each. Prediction costs S forward passes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesify.core.batches import rows
from bayesify.core.errors import DivergenceError, OptionError
from bayesify.core.modes import evaluating
from bayesify.core.options import check_options, option
from bayesify.core.types import Inputs, Named, Where
from bayesify.distributions.mean_field import MeanField, magnitudes
from bayesify.forward.outputs import squared_gradients
from bayesify.methods.members.map import MAP
from bayesify.numerics.noise import single_or_better
from bayesify.posteriors.scale import best_factor
from bayesify.posteriors.weight import WeightPosterior
from bayesify.tracing.trace import call
from bayesify.training.method import PRETRAIN_HELP, Method, Pretrain
from bayesify.training.problem import Problem
from bayesify.weights.select import all_weights


@dataclass(frozen=True)
class DiagonalLaplace(Method):
    """Gaussian noise around a trained net, small where its outputs are sensitive.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> held_out = torch.randn(32, 4), torch.randint(3, (32,))
        >>> method = DiagonalLaplace(pretrain=bayesify.MAP(epochs=1))
        >>> posterior = bayesify.fit(torch.nn.Linear(4, 3), (x, y), method, validation=held_out)
        >>> posterior.trainable_parameters                     # the scales
        15
    """

    auto_pretrain = MAP()
    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    where: Where = option(all_weights, help="which weights are random")
    examples: int = option(
        1000,
        help="training examples, at most, that the Fisher information is a mean over",
        at_least=1,
    )
    labels: int = option(1, help="labels drawn from the model for each example", at_least=1)
    prior_scale: float = option(1.0, help="standard deviation of the prior", above=0)
    prior_relative: bool = option(
        True, help="whether prior_scale is relative to each tensor's root mean square"
    )
    factor: float | None = option(
        None, help="multiplies all scales; none: chosen on the validation examples", above=0
    )
    num_samples: int = option(10, help="weight samples while the factor is chosen", at_least=1)

    def __post_init__(self) -> None:
        check_options(self)

    def start(self, problem: Problem) -> "LaplaceRun":
        """Freeze the network; the weights it has are the means.

        Raises:
            OptionError: neither a factor nor validation examples to choose it on.
        """
        if self.factor is None and problem.validation is None:
            raise OptionError(
                "DiagonalLaplace(factor=None) chooses its factor on held-out examples, and got "
                "none; pass them, fit(..., validation=...), or a number, factor=1.0 for the plain "
                "Laplace approximation."
            )
        return LaplaceRun(self, problem)


class LaplaceRun:
    """Adds up squared gradients over one pass; then the posterior has a closed form."""

    epochs = 1

    def __init__(self, options: DiagonalLaplace, problem: Problem) -> None:
        self.options, self.problem = options, problem
        model = problem.model.eval().requires_grad_(False)
        q = MeanField.around(model, where=options.where, example=problem.data.example)
        self.loc = q.point()
        unit = magnitudes(self.loc) if options.prior_relative else dict.fromkeys(self.loc, 1.0)
        self.prior_scale = {name: options.prior_scale * each for name, each in unit.items()}
        self.squares: Named = {
            name: torch.zeros_like(each, dtype=single_or_better(each.dtype))
            for name, each in self.loc.items()
        }
        self.seen, self.nll = 0, 0.0
        self.factor = 1.0 if options.factor is None else options.factor
        few = rows(problem.data.example, slice(2))
        self._squares(few, self._drawn(self._outputs(few)))  # says now if it cannot be done

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, float]:
        """Add the examples of a batch, as far as more are wanted; logs their mean loss so far.

        Raises:
            DivergenceError: the loss or a gradient is not finite.
        """
        wanted = slice(min(len(target), self.options.examples - self.seen))
        if not wanted.stop:
            return {"loss": self.nll / self.seen}
        inputs, target = rows(inputs, wanted), target[wanted]
        outputs = self._outputs(inputs)
        nll = -self.problem.likelihood.log_prob(outputs[None], target).sum().item()
        for _ in range(self.options.labels):
            for name, each in self._squares(inputs, self._drawn(outputs)).items():
                self.squares[name] += each / self.options.labels
        if not math.isfinite(nll + sum(each.sum().item() for each in self.squares.values())):
            raise DivergenceError(
                f"the loss ({nll / len(target)} per example) or a gradient of the trained network "
                f"is not finite; look for extreme values in the data and in its weights."
            )
        self.seen, self.nll = self.seen + len(target), self.nll + nll
        return {"loss": self.nll / self.seen}

    def end_epoch(self, epoch: int) -> None:
        """Choose the factor, if that is asked for."""
        if self.options.factor is None and self.problem.validation is not None:
            self.factor = best_factor(
                self._posterior(1.0),
                self.problem.validation,
                num_samples=self.options.num_samples,
            )

    def posterior(self) -> WeightPosterior:
        """With the examples seen so far; before the first, as wide as the prior."""
        return self._posterior(self.factor)

    def _posterior(self, factor: float) -> WeightPosterior:
        data = self.problem.data.num_data / max(1, self.seen)  # N F = N / n times the sum over n
        scale = {
            name: factor * (data * each + self.prior_scale[name] ** -2).rsqrt()
            for name, each in self.squares.items()
        }
        q = MeanField(self.loc, {n: each.to(self.loc[n].dtype) for n, each in scale.items()})
        q.loc.requires_grad_(False)  # as given: the method learns the scales
        return self.problem.posterior(q)

    def _outputs(self, inputs: Inputs) -> Tensor:
        """What the network itself returns, (B, ...)."""
        with torch.no_grad(), evaluating(self.problem.model):
            return self.problem.readout(call(self.problem.model, inputs))

    def _drawn(self, outputs: Tensor) -> Tensor:
        """A label for each example, from the model's own predictive."""
        return self.problem.likelihood.sample(outputs[None], generator=self.problem.generator)[0]

    def _squares(self, inputs: Inputs, drawn: Tensor) -> Named:
        return squared_gradients(
            self.problem.model,
            self.loc,
            inputs,
            drawn,
            lambda outputs, target: self.problem.likelihood.log_prob(outputs[None], target).sum(),
            vectorize=self.problem.vectorize,
            readout=self.problem.readout,
        )
