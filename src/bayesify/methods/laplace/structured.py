"""Laplace: a Gaussian around a trained net, its precision the curvature, its prior by evidence.

Source: MacKay 1992, Neural Computation 4(3); Daxberger et al. 2021, arXiv 2106.14806, whose library
laplace-torch gives curvature and evidence (`laplace_torch.py`); the linearised predictive Immer et
al. 2021, arXiv 2008.08216.

    q(w) = N(w*, (G + tau I)^-1),    G = sum_n J_n^T H_n J_n,    J_n = df(x_n, w*) / dw
    tau  = argmax of Laplace's approximation of ln p(D | tau)
    p(y | x) ~ 1/S sum_s p(y | f(x, w*) + J (w_s - w*)),    w_s ~ q
    classes, by default: of f(x, w*), damped by the variance of these (`numerics/probit.py`)

H_n is the Hessian of -ln p(y_n | f) in the outputs f, so that G is the generalised Gauss-Newton
matrix: whole ("full"), a Kronecker product for each layer ("kron"), or its diagonal ("diag").
Where the outputs are linear in the random weights, as in those of a last layer, the network and
its tangent are one, and samples of the weights are put into the network itself. That is tried out
on the example, with noise ten times as large as the weights, not guessed by the layer's name.
The prior has its mean at 0 and need not be that of the pretraining. Evidence makes the noise of
well-trained classifiers far too wide (docs/methods/laplace.md), so where validation examples are
given all standard deviations are multiplied by the factor that is best on them.
Cost: one pass over the data: "kron" a backward pass for each class, else the Jacobians of all
examples; then 100 steps on the prior precision, without data. Prediction: S forward passes of what
lies behind the first random weight, 2 to 3 times that where it is linearised; damped, one more.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesify.core.batches import rows
from bayesify.core.errors import DivergenceError
from bayesify.core.modes import evaluating
from bayesify.core.options import check_options, option
from bayesify.core.streams import stream
from bayesify.core.types import Inputs, Where
from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.kronecker_normal import KroneckerNormal
from bayesify.distributions.mean_field import magnitudes
from bayesify.forward.calling import call_at
from bayesify.methods.laplace.curvature import Curvature
from bayesify.methods.members.map import MAP
from bayesify.posteriors.scale import best_factor
from bayesify.posteriors.weight import AVERAGES, OF_LOGITS, WeightPosterior
from bayesify.tracing.trace import call
from bayesify.training.method import PRETRAIN_HELP, Method, Pretrain
from bayesify.training.problem import Problem
from bayesify.weights.named import weights_of
from bayesify.weights.select import chosen, last_layer

TOLERANCE = 1e-3
"""Largest deviation of outputs from their linearisation, as a part of the largest change."""


@dataclass(frozen=True)
class Laplace(Method):
    """Gaussian around a trained net, of full, Kronecker or diagonal precision.

    Needs the extra: `pip install bayesify[laplace]`.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> method = Laplace(pretrain=bayesify.MAP(epochs=1), structure="full")
        >>> posterior = bayesify.fit(torch.nn.Linear(4, 3), (x, y), method)
        >>> posterior.q.covariance.shape
        torch.Size([15, 15])
    """

    auto_pretrain = MAP()
    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    where: Where = option(last_layer, help="which weights are random")
    structure: str = option("kron", help="of the curvature", choices=("full", "kron", "diag"))
    prior_precision: float | None = option(
        None, help="of the weights' prior, around 0; none: by evidence", above=0
    )
    prior_structure: str = option(
        "scalar",
        help="one prior precision by evidence for all weights, or one for each tensor",
        choices=("scalar", "layerwise"),
    )
    predictive: str = option(
        "linearised",
        help="the network's tangent under weight samples, or the network itself under them",
        choices=("linearised", "sampled"),
    )
    average: str = option(
        "probit",
        help="of class outputs over samples: of probabilities, or by the probit rule",
        choices=AVERAGES,
    )
    rescale: bool = option(
        True,
        help="whether noise by evidence is then scaled on validation examples, if there are any",
    )

    def __post_init__(self) -> None:
        check_options(self)

    def start(self, problem: Problem) -> "LaplaceRun":
        """Freeze the network; the weights it has are the mean.

        Raises:
            OptionError: laplace-torch is not installed, or no weight is chosen.
            UnsupportedModelError: it has no form for the likelihood, or cannot treat the model.
            UnsupportedLayerError: a layer whose curvature has no Kronecker factors.
        """
        return LaplaceRun(self, problem)


class LaplaceRun:
    """Adds up curvature over one pass; then the posterior has a closed form."""

    epochs = 1

    def __init__(self, options: Laplace, problem: Problem) -> None:
        self.options, self.problem = options, problem
        model = problem.model.eval().requires_grad_(False)
        self.names = chosen(options.where, model, problem.data.example)
        few = rows(problem.data.example, slice(2))
        self._curvature().add_(few, self._drawn(few))  # says now if it cannot be done
        self.curvature = self._curvature()
        self.linear = options.predictive == "sampled" or self._is_linear(few)
        self.factor = 1.0

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, float]:
        """Add the curvature of a batch; logs the loss of the trained network.

        Raises:
            DivergenceError: the loss or the curvature is not finite.
        """
        with torch.no_grad(), evaluating(self.problem.model):
            loss = self.problem.network_loss(inputs, target).item()
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss of the trained network is {loss}; look for extreme values in the data "
                f"and in its weights."
            )
        self.curvature.add_(inputs, target)
        return {"loss": loss}

    def end_epoch(self, epoch: int) -> None:
        """Choose the prior precision, unless it is given; then the size of the noise."""
        if self.options.prior_precision is not None:
            return
        self.curvature.tune_(self.options.prior_structure)
        if self.options.rescale and self.problem.validation is not None:
            self.factor = best_factor(self.posterior(), self.problem.validation)

    def posterior(self) -> WeightPosterior:
        """With the examples seen so far; before the first, as wide as the prior."""
        damped = self.options.average == "probit" and self.problem.likelihood.task in OF_LOGITS
        return self.problem.posterior(self._distribution()).replaced(
            tangent=not self.linear, average="probit" if damped else "samples"
        )

    def log_evidence(self) -> float:
        """Laplace's approximation of ln p(D), nats."""
        return self.curvature.log_evidence()

    def _curvature(self) -> Curvature:
        start = self.options.prior_precision or 1.0
        return Curvature(self.problem, self.names, self.options.structure, start)

    def _distribution(self) -> WeightDistribution:
        q = self.curvature.distribution()
        if isinstance(q, KroneckerNormal) and self.options.prior_precision is not None:
            q.prior.requires_grad_(False)  # it is the user's
        return q if self.factor == 1 else q.scaled(self.factor)

    def _outputs(self, inputs: Inputs) -> Tensor:
        """What the trained network returns, (B, ...)."""
        with torch.no_grad(), evaluating(self.problem.model):
            return self.problem.readout(call(self.problem.model, inputs))

    def _drawn(self, inputs: Inputs) -> Tensor:
        """Targets that the likelihood may hold."""
        seeded = stream(0, "targets")
        return self.problem.likelihood.sample(self._outputs(inputs)[None], generator=seeded)[0]

    def _is_linear(self, few: Inputs) -> bool:
        """Whether outputs move in proportion to the weights, as far as these may move.

        Twice a step and its opposite tell: no tangent is needed, which some layers lack.
        """
        model, readout = self.problem.model, self.problem.readout
        weights, seeded = weights_of(model), torch.Generator().manual_seed(0)
        loc = {name: weights[name] for name in self.names}
        unit, start = magnitudes(loc), self._outputs(few)
        for _ in range(3):
            noise = {n: torch.randn(e.shape, generator=seeded).to(e) for n, e in loc.items()}
            with torch.no_grad(), evaluating(model):
                one, two, back = (
                    call_at(
                        model,
                        {n: each + 10 * t * unit[n] * noise[n] for n, each in loc.items()},
                        few,
                        readout,
                    )
                    - start
                    for t in (1, 2, -1)
                )
            off = torch.maximum((two - 2 * one).abs().max(), (back + one).abs().max())
            if not bool(off <= TOLERANCE * one.abs().max()):
                return False
        return True
