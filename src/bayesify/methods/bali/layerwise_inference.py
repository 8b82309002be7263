"""BALI: every layer a multivariate Bayesian linear regression on pseudo-targets.

Source: BALI, Bayesian layerwise inference (Kurle, Klushyn & Herbrich 2024, arXiv 2411.12102), as
its abstract describes it: each layer a multivariate Bayesian linear regression; pseudo-targets are
the layer's outputs moved by the back-propagated gradient of the objective; matrix-normal posteriors
with Kronecker covariance; moving averages over terms of the natural parameters for mini-batches.
Its equations were not at hand: those below are our completion, and each open choice is an option
(docs/methods/bali.md lists them).

    layer       T | H, W ~ MN(H W, I, V),  W ~ MN(0, I / tau, V)   =>   W ~ MN(M, P^-1, V)
                H: rows of features, with a constant 1 for the bias; for a convolution its patches
    targets     T = H M - G V,   G = d(-log p) / d(outputs), summed over examples; of a Gaussian
                output Z - G V, the data themselves, so that this layer is exact regression
    noise       V = (F + delta I)^-1,  F the Fisher information of labels drawn from the model;
                of a Gaussian output its own variance
    batches     P   <- (1 - rho) P   + rho (w H^T H + tau I),  w = N / (B T)
                P M <- (1 - rho) P M + rho w H^T (pseudo-targets)     (rho: cosine after a warm-up)
    noise s^2   of a Gaussian: s^2 <- |y - mean f|^2 / N + (1 - exp(-p / N)) s^2, a moving average;
                p effective parameters, from the spread of noisy forward passes
    bound       of a Gaussian: no layer has more than N / 2 effective parameters; its tau rises
                until that holds, which takes them from the mean and from the spread alike

The noise and the bound are ours. Without them s^2 -> V -> spread of the outputs -> s^2 is a
loop of gain p / N, where p = sum of tr(F V) tr(P^-1 H^T H) over the layers: Kronecker factors each
learn from all the data, so p goes up to the number of weights, however few the data are, and above
N the noise grows without end. In a joint regression p < N.

It starts from the network's weights, or from He's, with the second moments of the features that
they cause (one pass over the data): from zero statistics the first batch would be fitted
completely. The step from outputs to targets is the noise covariance V: with k V the prior would
silently be scaled by 1 / k.
K members are K independent posteriors from K starts, those of an ensemble where that is the
pretraining, run at once; the posterior is their mixture.
The layers are updated all at once, and forward passes in training draw each example's outputs from
the law that weight samples give them, jointly over its positions (`weights/regression.py`).
Cost of a step: a forward and two backward passes (none for weights), and per layer of a inputs and
b outputs n a^2 + a^3 / 3 + a^2 b + n a b + b^3 operations, for n rows; a convolution has a row per
output position, and is dear. It stores a^2 + b^2 numbers a layer besides the weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from bayesify.core.batches import batch_size, to_device
from bayesify.core.clones import clone
from bayesify.core.errors import OptionError, UnsupportedLayerError, UnsupportedModelError
from bayesify.core.options import ByTask, check_options, option
from bayesify.core.streams import stream
from bayesify.core.types import Inputs, Named, Where
from bayesify.distributions.matrix_normal import Layer, MatrixNormal
from bayesify.likelihoods import Likelihood
from bayesify.methods.bali.checks import check_likelihood, check_precision, probe
from bayesify.methods.bali.layer import LearntLayer
from bayesify.methods.bali.options import LayerwiseOptions, Scales
from bayesify.methods.bali.run import LayerwiseRun
from bayesify.methods.members.starts import starts
from bayesify.numerics.layer_regression import LayerRegression
from bayesify.posteriors.weight import WeightPosterior
from bayesify.tracing.linear_maps import LinearMap, roles
from bayesify.training.data import TrainingData
from bayesify.training.method import Method, Pretrain
from bayesify.training.problem import Problem
from bayesify.weights.named import copied, weights_of
from bayesify.weights.select import all_weights

FIRST_COVARIANCE = 0.1
"""V = 0.1 I for the noise of the very first forward pass, before F has seen a batch."""

SCALES = ByTask(
    regression=Scales(prior_precision=0.1, damping=0.05, temperature=1.0),
    classes=Scales(prior_precision=30.0, damping=0.02, temperature=0.5),
)
"""What `None` stands for, by the likelihood's task; chosen on validation data.

They differ because V does: the prior's variance is V / tau. Where the noise is learnt V is about
the noise, well below 1; where labels have become certain F vanishes and V rises to 1 / delta.
"""


@dataclass(frozen=True)
class BALI(LayerwiseOptions, Method):
    """Bayesian layerwise inference.

    Example:
        >>> import torch, bayesify
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> posterior = bayesify.fit(nn.Linear(4, 3), (x, y), BALI(epochs=1, min_steps=1))
        >>> posterior.predict(x, num_samples=8).logits.shape
        torch.Size([8, 64, 3])
    """

    pretrain: Pretrain = option(
        None, help="method that trains the network first; none: BALI trains it itself"
    )
    where: Where = option(all_weights, help="which weights are learnt; the others stay")
    first_weights: str = option(
        "own",
        help="where layers begin: at the network's own weights, or at He's, drawn anew for ReLUs",
        choices=("own", "he"),
    )
    members: int = option(1, help="how many independent posteriors are mixed", at_least=1)
    epochs: int = option(10, help="passes over the data, at least", at_least=1)
    min_steps: int = option(2000, help="steps at least: small data get more passes", at_least=1)
    prior_precision: float | None = option(
        None,
        help="tau of the prior MN(0, I / tau, V) of each layer; none: by the task, 0.1 or 30",
        above=0,
    )
    damping: float | None = option(
        None, help="delta in V = (F + delta I)^-1; none: by the task, 0.05 or 0.02", above=0
    )
    temperature: float | None = option(
        None, help="T: data count N / T times, 1 is Bayes; none: by the task, 1 or 0.5", above=0
    )
    rest: str = option(
        "vectors",
        help="weights that are no layers and yet trained, by Adam: vectors (norms), or all",
        choices=("vectors", "all"),
    )

    def __post_init__(self) -> None:
        check_options(self)
        several = getattr(self.pretrain, "members", 1)
        if isinstance(self.pretrain, Method) and several != self.members:
            raise OptionError(
                f"BALI(members={self.members}, pretrain={type(self.pretrain).__name__}(...)): each "
                f"posterior starts from a trained network of its own; expected "
                f"pretrain=Ensemble(members={self.members}), or pretrain none."
                if self.members > 1
                else f"BALI(pretrain={type(self.pretrain).__name__}(...)) trains several networks; "
                f"expected one, such as pretrain=MAP(), or members={several}."
            )
        if self.first_weights != "own" and self.pretrain is not None:
            raise OptionError(
                f"BALI(first_weights={self.first_weights!r}, pretrain=...): the trained weights "
                f"would be thrown away; expected first_weights='own', or pretrain none."
            )

    def from_members(self) -> bool:
        """Whether each posterior begins at a network of its own, of those pretrained."""
        return self.members > 1

    def trains_network(self) -> bool:
        """It trains whatever network it is given."""
        return True

    def draws_weights(self) -> bool:
        """Whether some posterior begins at weights that the network does not have."""
        return self.members > 1 or self.first_weights != "own"

    def scales(self, likelihood: Likelihood) -> Scales:
        """The widths of prior, noise and data, where the options leave them to the task."""
        options = {each.name: getattr(self, each.name) for each in fields(Scales)}
        given = {name: each for name, each in options.items() if each is not None}
        return replace(SCALES.of(likelihood.task), **given)

    def start(self, problem: Problem) -> LayerwiseRun:
        """Find the layers, look at the data once, and begin."""
        check_likelihood(problem.likelihood)
        check_precision(problem.model)
        learnt = self._learnt(problem.model, problem.data.example)
        weights, buffers = starts(problem, self.members, learnt.names)
        run = self._run(
            problem,
            [self._layer(each, law, weights) for each, law in learnt.layers],
            points={name: weights[name] for name in learnt.points},
            buffers=buffers,
        )
        probe(run, problem.data.example)
        if self.first_weights == "he":
            for layer in run.layers:
                layer.draw_anew_(problem.generator)
        self._see_data(run, problem.data.inputs())
        return run

    def resume(self, posterior: WeightPosterior, example: Inputs) -> LayerwiseRun:
        """Go on learning where a fitted posterior ended, from a stream.

        Args:
            posterior: Of BALI; it does not change.
            example: A small batch of inputs, from which the layers are read.
        """
        q, record = posterior.q, posterior.record
        if not isinstance(q, MatrixNormal) or record is None:
            raise OptionError(
                f"resume: expected a posterior that BALI has fitted, got {posterior!r}."
            )
        model, example = clone(posterior.model), to_device(example, posterior.device)
        problem = Problem(
            model=model,
            likelihood=clone(posterior.likelihood),
            data=TrainingData.of(
                lambda: iter([(example, torch.empty(batch_size(example)))]),
                num_data=record.num_data,
            ),
            readout=posterior.readout,
            vectorize=posterior.vectorize,
            generator=stream(record.seed, "resume"),
        )
        maps = {each.weight: each for each in roles(model, example).maps}
        damping, loc = self.scales(problem.likelihood).damping, copied(q.loc.named())

        def learnt(law: Layer) -> LearntLayer:
            name, found = law.weight, maps[law.weight]
            regression = LayerRegression.of_factors(
                _matrix(found, law, loc),
                q.row.named()[name].detach(),
                q.column.named()[name].detach(),
                prior_precision=q.prior_precision.named()[name],
                damping=damping,
            )
            return LearntLayer(found, law, loc[name].shape[1:], regression)

        run = self._run(
            problem,
            [learnt(law) for law in q.layers],
            points=copied(q.points.named()),
            buffers=copied(q.statistics.named()),
        )
        run.steps = self.refresh  # not the first: F is an average already
        run.record = record
        probe(run, example)
        return run

    def _learnt(self, model: nn.Module, example: Inputs) -> "Learnt":
        """Which weights are layers, and which are points.

        Raises:
            UnsupportedLayerError: a weight is neither.
        """
        found = roles(model, example)
        trainable = {name for name, each in model.named_parameters() if each.requires_grad}
        chosen = [name for name in self.where(model, example) if name in trainable]
        maps = [each for each in found.maps if each.weight in chosen]
        layers = [(m, Layer(m.weight, m.bias if m.bias in chosen else None)) for m in maps]
        if not layers:
            raise UnsupportedModelError(
                f"BALI found no layer to learn in {type(model).__name__}: no weight that is "
                f"chosen and not frozen multiplies activations in a linear layer or convolution."
            )
        taken = {name for _, law in layers for name in law.names}
        points = [name for name in chosen if name not in taken]
        weights = weights_of(model)
        refused = [n for n in points if self.rest == "vectors" and weights[n].ndim > 1]
        if refused:
            reasons = "; ".join(
                f"`{name}` ({found.others.get(name, 'the forward pass does not read it')})"
                for name in refused
            )
            raise UnsupportedLayerError(
                f"BALI learns linear layers and convolutions as regressions, and vectors such as "
                f"the gains of norms by Adam; it cannot treat {reasons}. Pass rest='all' to train "
                f"them by Adam as points, choose others with `where`, or freeze them "
                f"(requires_grad_(False)) to keep their values."
            )
        return Learnt(layers, points)

    def _layer(self, linear_map: LinearMap, law: Layer, weights: Named) -> LearntLayer:
        matrix = _matrix(linear_map, law, weights)
        regression = LayerRegression.start(
            matrix,
            matrix.new_zeros(len(matrix), matrix.shape[1], matrix.shape[1]),
            prior_precision=1.0,
            covariance=FIRST_COVARIANCE,
        )  # until the data have been seen
        return LearntLayer(linear_map, law, weights[law.weight].shape[1:], regression)

    def _run(
        self, problem: Problem, layers: list[LearntLayer], *, points: Named, buffers: Named
    ) -> LayerwiseRun:
        return LayerwiseRun(
            problem.model,
            problem.likelihood,
            layers,
            points=points,
            buffers=buffers,
            options=self,
            scales=self.scales(problem.likelihood),
            num_data=problem.data.num_data,
            steps_per_epoch=problem.data.steps_per_epoch,
            epochs=max(self.epochs, -(-self.min_steps // problem.data.steps_per_epoch)),
            generator=problem.generator,
            vectorize=problem.vectorize,
            readout=problem.readout,
        )

    def _see_data(self, run: LayerwiseRun, batches: Iterable[Inputs]) -> None:
        """Begin with the second moments of the features under the first weights.

        Starting them at zero would fit the first batch completely, and diverge.
        """
        grams: dict[str, Tensor] = {}
        seen = 0
        for inputs in batches:
            _, tape = run.look(inputs)
            for layer in run.layers:
                h = layer.features(tape)
                grams[layer.name] = grams.get(layer.name, 0) + (h.mT @ h).double()
            seen += batch_size(inputs)
        for layer in run.layers:
            mean = layer.regression.mean
            share = run.num_data / (seen * run.scales.temperature)
            gram = (share * grams[layer.name]).expand(len(mean), -1, -1)
            layer.regression = LayerRegression.start(
                mean,
                gram,
                prior_precision=run.scales.prior_precision,
                covariance=FIRST_COVARIANCE,
                name=layer.name,
            )


@dataclass(frozen=True)
class Learnt:
    """What is learnt of a network: layers by regression, points by Adam."""

    layers: list[tuple[LinearMap, Layer]]
    points: list[str]

    @property
    def names(self) -> set[str]:
        """Of all weights that are learnt."""
        return {name for _, law in self.layers for name in law.names} | {*self.points}


def _matrix(linear_map: LinearMap, law: Layer, weights: Named) -> Tensor:
    """W~ (K, a, b) of a layer."""
    bias = None if law.bias is None else weights[law.bias]
    return linear_map.matrix(weights[law.weight], bias)
