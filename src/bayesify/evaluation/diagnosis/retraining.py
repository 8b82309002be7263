"""Some weights of a trained network trained again from other values; all else stays bitwise as is.

Training is in eval mode: batch norm keeps its statistics and dropout is off, so that every
retraining descends the same function of the chosen weights, that which is predicted with after.
Every one sees the same batches in the same order, so that they differ by their starts alone.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from bayesify.core.batches import split_batch, to_device
from bayesify.core.clones import clone
from bayesify.core.errors import DataError, OptionError
from bayesify.core.modes import seeded
from bayesify.core.types import Inputs, Named, Readout
from bayesify.data.loading import Data, as_loader
from bayesify.distributions.particles import Particles
from bayesify.evaluation.predictions import Predictions, Predicts, collect
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import Likelihood, resolve
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.checks import check_data, check_held_out
from bayesify.training.fit import fit
from bayesify.training.method import Method, Pretrain, Run
from bayesify.training.problem import Problem
from bayesify.weights.named import assign_, buffers_of, weights_of


@dataclass(frozen=True)
class InEvalMode(Method):
    """A method whose runs train the model in eval mode.

    Args:
        method: What trains.
    """

    method: Method
    pretrain: Pretrain = field(init=False)

    def __post_init__(self) -> None:
        """What trains the network first is in eval mode too; "auto" trains: weights begin anew."""
        first = self.method.before()
        object.__setattr__(self, "pretrain", None if first is None else InEvalMode(first))

    def trains_network(self) -> bool:
        """It trains whatever network it is given."""
        return True

    def draws_weights(self) -> bool:
        """Yes: the chosen weights begin at values of the caller's."""
        return True

    def start(self, problem: Problem) -> Run:
        """Begin; only then is the mode the last word."""
        run = self.method.start(problem)
        problem.model.eval()
        for module in problem.model.modules():
            if isinstance(module, nn.RNNBase):  # cuDNN has no backward pass for these in eval mode
                module.train()
        return run


class Retraining:
    """Trains chosen weights of a trained network, each time from values of one's own.

    Args:
        model: The trained network; copied.
        data: What to train on.
        validation: What to predict after; None for `data`.
        method: Must leave weights with `requires_grad=False` alone, as MAP does.
        likelihood: Copied for each retraining.
        seed: Of the order of batches, and of the method's noise.
        batch_size: For data that is no loader.
        device: Where to train; None for where the model is.
        readout: Turns an output object into the tensor that the likelihood reads.

    Attributes:
        model: The copy, frozen, in eval mode, on the device.
        example: Inputs of the first batch.
        given: What the network predicts as it is.

    Raises:
        OptionError: `method` is no method.
        DataError: data or validation are unusable; see `check_data`.

    Example:
        >>> from bayesify.methods.members.map import MAP
        >>> net, data = nn.Linear(4, 3), (torch.randn(20, 4), torch.arange(20) % 3)
        >>> retrain = Retraining(net, data, method=MAP(epochs=1))
        >>> weights, predictions = retrain({"bias": torch.zeros(3)})
        >>> weights["bias"].shape, len(predictions)
        (torch.Size([3]), 20)
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        *,
        validation: Data | None = None,
        method: Method,
        likelihood: str | Likelihood = "categorical",
        seed: int = 0,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        readout: Readout = read_tensor,
    ) -> None:
        if isinstance(method, type) or not isinstance(method, Method):
            raise OptionError(
                f"method: expected an instance such as bayesify.MAP(epochs=20), got {method!r}."
            )
        weights_of(model)  # raises when there are none
        self.model = clone(model).eval().requires_grad_(False)
        self.model.to(device or next(model.parameters()).device)
        self._device = next(self.model.parameters()).device
        self._likelihood = clone(resolve(likelihood)).to(self._device)
        self._method, self._data, self._readout = InEvalMode(method), data, readout
        self._seed, self._batch_size = seed, batch_size
        self._training = as_loader(data, batch_size=batch_size, shuffle=False)
        checked = self._training, self.model, self._likelihood, readout
        self._judged = self._training
        with seeded(seed, "retrain", self.model):
            self.example = check_data(*checked).first
            if validation is not None:
                self._judged = as_loader(validation, batch_size=batch_size, shuffle=False)
                check_held_out(self._judged, *checked[1:])
        as_given = Particles.of_models([self.model])
        self.given = self._predict(
            WeightPosterior(self.model, as_given, self._likelihood, readout=readout)
        )

    def __call__(self, start: Named) -> tuple[Named, Predictions]:
        """What the weights named in `start` become when they start there, and the predictions.

        Raises:
            OptionError: the method changed other weights, or did not learn these.
            DataError: a validation loader gave the examples in another order than before.
        """
        model = clone(self.model)
        assign_(model, start)
        for name, each in model.named_parameters():
            each.requires_grad_(name in start)
        posterior = fit(
            model,
            self._data,
            self._method,
            likelihood=clone(self._likelihood),
            seed=self._seed,
            batch_size=self._batch_size,
            copy=False,
            readout=self._readout,
        )
        learnt = posterior.point()
        self._check_rest(learnt, start)
        predictions = self._predict(posterior)
        if not torch.equal(predictions.target, self.given.target):
            raise DataError(
                "the examples came in another order than before, so that predictions cannot be "
                "compared: expected a loader with a fixed order; pass `validation` as tensors, as "
                "a data set, or as a loader with shuffle=False."
            )
        return {name: learnt[name].cpu() for name in start}, predictions

    def inputs(self) -> Iterator[Inputs]:
        """Those of all training batches, on the device."""
        with seeded(self._seed, "retrain", self.model):
            for batch in self._training:
                yield to_device(split_batch(batch), self._device)[0]

    def _predict(self, posterior: Predicts) -> Predictions:
        # a loader that shuffles does so in the same way
        with seeded(self._seed, "retrain", self.model):
            return collect(posterior, self._judged)

    def _check_rest(self, learnt: Named, chosen: Collection[str]) -> None:
        before = weights_of(self.model) | buffers_of(self.model)
        moved = [
            name
            for name, each in learnt.items()
            if name not in chosen and not torch.equal(each, before[name])
        ]
        if moved or not set(chosen) <= learnt.keys():
            what = f"changed {', '.join(moved)}" if moved else "did not learn all of them"
            raise OptionError(
                f"{self._method.method!r}: expected a method that trains {', '.join(chosen)} "
                f"alone, but it {what}; use one that leaves weights with requires_grad=False as "
                f"they are and learns the others, such as bayesify.MAP."
            )
