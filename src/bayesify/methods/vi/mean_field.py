"""Mean-field variational inference: independent Gaussians over chosen weights.

Source: Blundell et al. 2015, arXiv 1505.05424 (eqs. 1-3); gradients by local reparameterisation
(Kingma, Salimans & Welling 2015, arXiv 1506.02557, eq. 6) where a weight meets one row of each
example, and elsewhere by Flipout (Wen et al. 2018, arXiv 1803.04386): `weights/noise_scope.py`.

    q(w) = prod_j N(loc_j, scale_j^2)
    loss = mean_b E_q[-log p(y_b | x_b, w)]  +  T * KL(q || p) / N
    KL   = sum_j [ ln(s0/scale_j) + (scale_j^2 + (loc_j - m0_j)^2) / (2 s0^2) - 1/2 ]

The other weights are frozen, and the network is in eval mode: its batch-norm statistics and dropout
belong to the trained net.
Completions of ours: means start at the network's weights; scales start in proportion to each
tensor's root mean square, and have a learning rate of their own (with the means' rate they would
not leave their start, and T would do nothing); the prior is centred at the start with a scale
relative to each tensor, or anywhere else by options. The defaults were chosen on validation data
(benchmarks/README.md): under N(0, 1) and T = 1 the posterior under-fits small data.
Cost: twice the chosen weights in parameters. A step runs one noisy forward pass; weights that are
frozen need no gradient of their own, so where the first layer alone is random a step costs about
2/3 of an ordinary one. Prediction costs S forward passes (less where the randomness starts late).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayesify.core.options import ByTask, check_options, option
from bayesify.core.types import Inputs, Named, Where
from bayesify.distributions.mean_field import MeanField, magnitudes
from bayesify.distributions.priors import NormalPrior
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.methods.members.map import MAP
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.loop import GradientRun, adam
from bayesify.training.method import PRETRAIN_HELP, Method, Pretrain
from bayesify.training.objective import Objective, elbo_terms
from bayesify.training.problem import Problem
from bayesify.weights.named import copied
from bayesify.weights.noise_scope import noise_scopes
from bayesify.weights.select import all_weights


@dataclass(frozen=True)
class MeanFieldVI(Method):
    """Mean-field Gaussian posterior over the weights that `where` chooses.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> method = MeanFieldVI(pretrain=bayesify.MAP(epochs=1), epochs=1)
        >>> bayesify.fit(torch.nn.Linear(4, 3), (x, y), method).trainable_parameters
        30
    """

    auto_pretrain = MAP()
    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    where: Where = option(all_weights, help="which weights are random")
    epochs: int = option(30, help="passes over the data with random weights", at_least=1)
    lr: float = option(3e-4, help="initial learning rate of the means", above=0)
    scale_lr: float = option(3e-2, help="initial learning rate of the scales", above=0)
    initial_scale: float = option(
        0.05, help="initial posterior scale, relative to each tensor's root mean square", above=0
    )
    prior_scale: float = option(0.3, help="standard deviation of the prior", above=0)
    prior_relative: bool = option(
        True, help="whether prior_scale is relative to each tensor's root mean square"
    )
    prior_loc: str = option(
        "start", help="where the prior is centred: the start, or zero", choices=("zero", "start")
    )
    temperature: float | None = option(
        None,
        help="weight T of the KL term; 1 is Bayes, less is tempered; none: by the task",
        at_least=0,
    )
    certify_split: float = option(
        0.0,
        help="share of the data kept from pretrain, so that certify() can bound the risk",
        at_least=0,
        at_most=1,
    )

    temperatures = ByTask(regression=1.0, classes=0.01)
    """What a temperature of None stands for; chosen on validation data (benchmarks/defaults)."""

    def __post_init__(self) -> None:
        check_options(self)

    @staticmethod
    def from_scratch(**options: Any) -> "MeanFieldVI":
        """All weights at once, from random ones: no pretraining, a prior N(0, 1), and T = 0.01.

        Options given win. Batch norm keeps the statistics that the network comes with, so one with
        batch norm should be trained first.

        Example:
            >>> MeanFieldVI.from_scratch(epochs=30).prior_loc
            'zero'
        """
        chosen: dict[str, Any] = {
            "pretrain": None,
            "epochs": 100,
            "lr": 3e-3,
            "prior_loc": "zero",
            "prior_relative": False,
            "prior_scale": 1.0,
            "temperature": 0.01,
        }
        return MeanFieldVI(**(chosen | options))

    def start(self, problem: Problem) -> GradientRun:
        """Freeze the network and put Gaussians around the chosen weights."""
        model = problem.model.eval().requires_grad_(False)
        q = MeanField.around(
            model,
            where=self.where,
            scale=self.initial_scale,
            relative=True,
            example=problem.data.example,
        )
        temperature = self.temperature_for(problem.likelihood.task)
        objective = ELBO(problem, q, self.prior(q.point()), temperature=temperature)
        return objective.run(lr=self.lr, scale_lr=self.scale_lr, epochs=self.epochs)

    def temperature_for(self, task: str) -> float:
        """T, of a likelihood's task."""
        return self.temperatures.of(task) if self.temperature is None else self.temperature

    def prior(self, start: Named) -> NormalPrior:
        """The prior over the weights that start at `start`."""
        unit = magnitudes(start) if self.prior_relative else dict.fromkeys(start, 1.0)
        return prior_in_units(start, unit, self.prior_scale, self.prior_loc)


def prior_in_units(start: Named, unit: dict[str, float], scale: float, loc: str) -> NormalPrior:
    """Normals as wide as `scale` times the unit of each tensor, at the "start" or at "zero"."""
    return NormalPrior(
        {name: scale * each for name, each in unit.items()},
        loc=copied(start) if loc == "start" else None,
    )


class ELBO(Objective):
    """The negative ELBO of a problem, whose network is frozen; its parameters are q's.

    Args:
        problem: What is fitted; its model is in the mode and as frozen as the caller wants it.
        q: What is learnt.
        prior: Moved to the model's device.
        temperature: T, the weight of the KL term.
    """

    q: MeanField | SharedNormal
    prior: NormalPrior

    def __init__(
        self,
        problem: Problem,
        q: MeanField | SharedNormal,
        prior: NormalPrior,
        *,
        temperature: float,
    ) -> None:
        super().__init__(problem)
        self.q, self.temperature = q, temperature
        self.prior = prior.to(next(problem.model.parameters()).device)
        self.scopes = noise_scopes(problem.model, problem.data.example, q.names)

    def forward(self, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """The loss, the expected negative log likelihood, and the KL divergence in nats."""
        return elbo_terms(
            self.problem.model,
            self.q,
            self.likelihood,
            self.prior,
            inputs,
            target,
            num_data=self.problem.data.num_data,
            temperature=self.temperature,
            generator=self.problem.generator,
            scopes=self.scopes,
            readout=self.problem.readout,
        )._asdict()

    def posterior(self) -> WeightPosterior:
        """What q is now, and the prior it was fitted under."""
        return self.problem.posterior(self.q, self.prior)

    def parameter_groups(self, *, lr: float, likelihood_lr: float | None = None) -> list[Any]:
        """See `Objective.parameter_groups`; scales have the learning rate of the likelihood."""
        *_, noise = super().parameter_groups(lr=lr, likelihood_lr=likelihood_lr)
        return [*self.q.parameter_groups(lr=lr, scale_lr=noise["lr"]), noise]

    def run(self, *, lr: float, scale_lr: float, epochs: int) -> GradientRun:
        """Adam on means at `lr`, and on scales and the likelihood's own numbers at `scale_lr`."""
        return GradientRun(
            self,
            adam(self.parameter_groups(lr=lr, likelihood_lr=scale_lr)),
            epochs=epochs,
            steps_per_epoch=self.problem.data.steps_per_epoch,
        )
