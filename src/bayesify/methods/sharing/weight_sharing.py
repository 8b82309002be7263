"""Stochastic weight sharing: all weights of a network from a small set of 2-D Gaussians.

Source: Lin, Guan, Jing, Botterweck & Patane 2025, "Stochastic Weight Sharing for Bayesian Neural
Networks" ("2DGBNN"), PMLR 258:4519-4527, arXiv 2505.17856; the algorithm as its code's README gives
it, stages 1 and 2. Its three named ingredients, blending, merging and the mixture's EM steps, are
off by default here: what is left is k-means on a diagonal Laplace approximation.

    mean field N(loc_i, scale_i^2) of every weight, post hoc or by mean-field VI
    structure  a Gaussian mixture over (loc_i, log scale_i), outliers, blends   (structure.py)
    merging    of Gaussians near in W2 distance, gradient and variance          (merging.py)
    tuning     mean_b E_q[-log p(y_b | x_b, w)] + T KL(q || prior) / N  over the book and the
               outliers, where KL is exact: each code's term times the number of its weights

Completions of ours. The published sampling law is ambiguous (`distributions/shared/normal.py` names
the readings); by default every weight draws for itself, since draws that are shared by all weights
of a code break the posterior unless their variance is tiny. Coordinates are relative to each
tensor's root mean square and use log scale, so that one book serves all layers. Variances of the
weights of a code are pooled by the harmonic mean. Outliers are the weights whose code's mean would
cost the most nats. Gaussians merge at the ends of epochs, but for the last third; weights stay with
theirs, since the book moves in tuning and the points that it was made of do not. In the released
code the tuning has no gradient of the data; here it has.
Cost: 2 (codes + outliers) parameters. Tuning costs what mean-field VI does; without it
(`epochs=0`) the fit is the source's, and seconds of clustering. Outliers by gradient take one more
pass over the data.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.options import check_options, option
from bayesify.core.types import Inputs, Named
from bayesify.distributions.base import Located
from bayesify.distributions.mean_field import MeanField, magnitudes
from bayesify.distributions.particles import Particles
from bayesify.distributions.shared.normal import LAWS, SharedNormal
from bayesify.methods.laplace.diagonal import DiagonalLaplace
from bayesify.methods.members.map import MAP
from bayesify.methods.sharing.codebook import share
from bayesify.methods.sharing.merging import MergeLimits
from bayesify.methods.sharing.structure import Source, quantisation_error
from bayesify.methods.sharing.tuning import Tuning, TuningOptions
from bayesify.posteriors.scale import best_factor
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.method import PRETRAIN_HELP, Method, Pretrain, Run
from bayesify.training.objective import member_losses
from bayesify.training.problem import Problem
from bayesify.weights.named import weights_of
from bayesify.weights.select import matrices

RULES = ("quantisation", "magnitude", "gradient")

NARROWEST = 1e-6
"""Least scale that is shared, relative to each tensor: books are of logarithms, and a weight of a
dead unit need not have moved at all.
"""


@dataclass(frozen=True)
class WeightSharing(Method):
    """Gaussians shared by many weights, around a network that is trained first.

    Example:
        >>> import bayesify
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 10))
        >>> x, y = torch.randn(96, 64), torch.randint(10, (96,))
        >>> method = WeightSharing(pretrain=bayesify.MAP(epochs=1), codes=16)
        >>> held_out = x[64:], y[64:]
        >>> posterior = bayesify.fit(net, (x[:64], y[:64]), method, validation=held_out)
        >>> posterior.trainable_parameters          # 16 Gaussians and 1 % of 9,472 weights, twice
        222
    """

    auto_pretrain = MAP()
    pretrain: Pretrain = option("auto", help=PRETRAIN_HELP)
    mean_field: Method = option(
        DiagonalLaplace(pretrain=None, where=matrices),
        help="method whose Gaussians are shared, not covariances; it pretrains nothing itself",
    )
    codes: int = option(256, help="Gaussians K at the start", at_least=1, at_most=2**15)
    outliers: float = option(
        0.01, help="share of the weights that keep a Gaussian of their own", at_least=0, at_most=0.5
    )
    outlier_rule: str = option(
        "quantisation",
        help="which: those whose code costs most nats, the largest, or those of largest gradient",
        choices=RULES,
    )
    em_steps: int = option(
        0, help="steps of EM after k-means, which fits the mixture alone", at_least=0
    )
    blending: bool = option(False, help="whether weights far from their Gaussian blend two")
    merge_distance: float = option(
        0.0, help="squared W2 distance below which Gaussians merge; 0: none do", at_least=0
    )
    merge_gradient: float = option(
        0.15, help="largest difference of gradients of Gaussians that merge in tuning", at_least=0
    )
    merge_variance: float = option(
        1e-3, help="variance that Gaussians which merge must stay below", above=0
    )
    law: str = option("per_weight", help="how weights of one code are related", choices=LAWS)
    epochs: int = option(0, help="passes over the data that tune book and outliers", at_least=0)
    lr: float = option(1e-3, help="initial learning rate of the means, in units", above=0)
    scale_lr: float = option(1e-2, help="initial learning rate of the log scales", above=0)
    prior_scale: float = option(
        0.3, help="standard deviation of the prior, relative to each tensor's", above=0
    )
    prior_loc: str = option(
        "start", help="where the prior is centred: the start, or zero", choices=("zero", "start")
    )
    temperature: float = option(0.1, help="weight T of the KL term in tuning", at_least=0)
    rescale: bool = option(
        True,
        help="whether noise is scaled on validation examples, if there are any, after tuning or "
        "where covariances were dropped",
    )
    num_samples: int = option(10, help="weight samples in the choice of that scale", at_least=1)

    def __post_init__(self) -> None:
        check_options(self)
        if isinstance(self.mean_field, type) or not isinstance(self.mean_field, Method):
            raise OptionError(
                f"WeightSharing(mean_field={self.mean_field!r}): expected an instance of a method "
                f"that fits a mean-field posterior, such as DiagonalLaplace(pretrain=None)."
            )
        if isinstance(self.mean_field.pretrain, Method):
            raise OptionError(
                "WeightSharing(mean_field=...): expected a method with pretrain=None, as the "
                "network is trained by WeightSharing(pretrain=...); move it there."
            )
        if self.epochs and self.law == "fixed":
            raise OptionError("WeightSharing(law='fixed', epochs>0): nothing random to tune.")

    @classmethod
    def as_published(cls, **options: object) -> Self:
        """The settings of the released code that there are here.

        K, the merging thresholds (there on raw weights, here relative to each tensor, so they
        merge less), the sampling law, Adam's rate, epochs, T = 1. Its outliers are the union of
        1 % of the gradients and |mu| > .2; here the former alone. Batches of 256 are `fit`'s to
        give. Its noise was trained by cross-entropy alone: the nearest here is
        `mean_field=MeanFieldVI(pretrain=None, temperature=0)`.
        """
        published: dict[str, object] = {
            "codes": 6000,
            "outlier_rule": "gradient",
            "blending": True,
            "law": "shared_loc",
            "merge_distance": 1.5e-7,
            "epochs": 200,
            "lr": 1e-5,
            "scale_lr": 1e-5,
            "temperature": 1.0,
            "rescale": False,
        }
        return cls(**published | options)  # type: ignore[arg-type]

    @property
    def limits(self) -> MergeLimits | None:
        """When two Gaussians are merged; None for never."""
        if not self.merge_distance:
            return None
        return MergeLimits(self.merge_distance, self.merge_gradient, self.merge_variance)

    def start(self, problem: Problem) -> "SharingRun":
        """Start the source; sharing begins when it has ended."""
        return SharingRun(self, problem)


@dataclass
class SharingRun:
    """First the source's run, then the structure, then tuning.

    Args:
        method: The options.
        problem: What is fitted.
    """

    method: WeightSharing
    problem: Problem

    def __post_init__(self) -> None:
        self._source_run: Run = self.method.mean_field.start(self.problem)
        self._run = self._source_run
        self._tuning: Tuning | None = None
        self._q: SharedNormal | None = None
        self._is_independent = True

    @property
    def epochs(self) -> int:
        """The source's, and those of tuning."""
        return self._source_run.epochs + self.method.epochs

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, float]:
        """Of the source, or of tuning."""
        return self._run.step(inputs, target)

    def end_epoch(self, epoch: int) -> None:
        """Share when the source has ended; later merge and finish."""
        done = epoch + 1 - self._source_run.epochs
        self._run.end_epoch(epoch if self._tuning is None else done - 1)
        if self._tuning is None:
            if epoch + 1 < self._source_run.epochs:
                return
            source, q = self._shared()
            if self.method.epochs:
                options = self._tuning_options()
                self._tuning = Tuning(options, self.problem, source, q)
                self._run = self._tuning.run(
                    lr=options.lr, scale_lr=options.scale_lr, epochs=options.epochs
                )
                return
        else:
            if done < self.method.epochs:
                if done <= self.method.epochs * 2 // 3:
                    self._tuning.restructure()
                return
            q = self._tuning.book.compacted()
        self._q = self._finished(q)

    def posterior(self) -> WeightPosterior:
        """What has been learnt so far; the source's as long as nothing is shared."""
        if self._q is not None:
            return self.problem.posterior(self._q)
        if self._tuning is not None:
            return self.problem.posterior(self._tuning.book.compacted())
        return self._source_posterior()

    def _source_posterior(self) -> WeightPosterior:
        posterior = self._source_run.posterior()
        if not isinstance(posterior, WeightPosterior) or not isinstance(posterior.q, Located):
            raise UnsupportedModelError(
                f"WeightSharing(mean_field={type(self.method.mean_field).__name__}(...)): expected "
                f"a method that fits a mean-field posterior, as DiagonalLaplace or MeanFieldVI, or "
                f"other Gaussians over the weights, as SWAG."
            )
        return posterior

    def _shared(self) -> tuple[Source, SharedNormal]:
        method, fitted = self.method, self._source_posterior()
        q = fitted.q
        assert isinstance(q, Located)
        self.problem = replace(self.problem, likelihood=fitted.likelihood)
        self.problem.model.eval().requires_grad_(False)
        self._is_independent = isinstance(q, MeanField)
        loc = q.point()
        least = {name: NARROWEST * each for name, each in magnitudes(loc).items()}
        return share(
            loc,
            {name: each.detach().clamp_min(least[name]) for name, each in q.scale.items()},
            codes=method.codes,
            outliers=method.outliers,
            em_steps=method.em_steps,
            blending=method.blending,
            law=method.law,
            limits=method.limits,
            scores=self._scores,
            generator=self.problem.generator,
        )

    def _tuning_options(self) -> TuningOptions:
        names = [each.name for each in fields(TuningOptions)]
        return TuningOptions(**{name: getattr(self.method, name) for name in names})

    def _scores(self, source: Source, q: SharedNormal) -> Named:
        if self.method.outlier_rule == "quantisation":
            return quantisation_error(source, q)
        if self.method.outlier_rule == "magnitude":
            return {name: each.abs() for name, each in source.loc.items()}
        return accumulated_gradient(self.problem, source)

    def _finished(self, q: SharedNormal) -> SharedNormal:
        held_out = self.problem.validation
        moved = self._tuning is not None or not self._is_independent
        if self.method.rescale and moved and held_out is not None:
            posterior, size = self.problem.posterior(q), self.method.num_samples
            q = q.scaled(best_factor(posterior, held_out, num_samples=size))
        return q.rounded()


def accumulated_gradient(problem: Problem, source: Source) -> Named:
    """Sum over training batches of the size of each mean's gradient, in units, by name."""
    model, total = problem.model.eval(), {n: torch.zeros_like(e) for n, e in source.loc.items()}
    places, units = weights_of(model), dict(zip(source.loc, source.unit, strict=True))
    means = {
        name: (units[name] * each).view(1, *source.shapes[name]).to(places[name])
        for name, each in source.loc.items()
    }
    one = Particles(means, {})  # a single member, at the means
    for inputs, target in problem.data.batches():
        loss = member_losses(
            model, one, problem.likelihood, inputs, target, readout=problem.readout
        ).sum()
        found = torch.autograd.grad(loss, list(one.parameters()), materialize_grads=True)
        for (name, size), each in zip(total.items(), found, strict=True):
            size += each.flatten().abs().cpu() * units[name]
    return total
