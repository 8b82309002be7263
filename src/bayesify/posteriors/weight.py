"""A fitted distribution with its model and likelihood: what `fit` returns."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.batches import tensors_of, to_device
from bayesify.core.clones import values_left
from bayesify.core.errors import OptionError
from bayesify.core.isolation import lock_of
from bayesify.core.modes import evaluating
from bayesify.core.streams import stream
from bayesify.core.types import Inputs, Named, Readout
from bayesify.distributions.base import Members, WeightDistribution, check_one_network
from bayesify.distributions.priors import Prior
from bayesify.forward.chunking import Footprint, can_vectorize, default_chunk_size
from bayesify.forward.outputs import outputs, read_tensor
from bayesify.forward.trunk import Trunk
from bayesify.likelihoods import Likelihood
from bayesify.likelihoods.predictive import Predictive
from bayesify.weights.held_rows import held_rows
from bayesify.weights.named import buffers_of, count, weights_of


@dataclass(frozen=True)
class FitRecord:
    """How a posterior came to be.

    Attributes:
        options: The method's options, as JSON.
        seed: The seed of the fit.
        num_data: Training examples N.
        history: One dictionary an epoch: `phase`, `epoch`, `loss` and what the method logs.
        seconds: Wall-clock time of the whole fit, pretraining included.
        seconds_per_epoch: Of the method's own epochs.
        seconds_per_step: Of a step in them.
        flops_per_step: Floating-point operations of the first of these steps, by torch's counter
            (products of matrices, convolutions and attention, two for each multiply-add).
        peak_memory_bytes: See `CostMeter`; the fit's own copy of the network counts.
        versions: Of bayesify, torch and Python.
        certifying: The examples that network and prior never saw, as `CertifyingPart.to_json`;
            None when nothing was kept from them.
        start: Whether the network was trained first and why, and which examples the likelihood's
            noise began at, as `Start.to_json` of `training/starting.py`; None in older records.
    """

    options: dict[str, Any]
    seed: int
    num_data: int
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    seconds_per_epoch: float = 0.0
    seconds_per_step: float = 0.0
    flops_per_step: int | None = None
    peak_memory_bytes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    certifying: dict[str, Any] | None = None
    start: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Posterior(ABC):
    """What can be asked for predictions with uncertainty."""

    likelihood: Likelihood
    record: FitRecord | None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def outputs(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Float[Tensor, "samples batch ..."]:
        """What the network returns under each weight sample; differentiable in x.

        Args:
            x: A tensor, positional arguments or keyword arguments, with batch axis B.
            num_samples: S. A finite set of members gives all M whatever S is; a rule that needs
                the samples' variance only (`bayesify.ProbitPosterior`) gives one.
            generator: Source of the weight samples. None for the posterior's own fixed ones,
                which the seed of its fit decides: the same for every call, so that predictions
                are a function of x and do not depend on how data are cut into batches.
            chunk_size: Samples run at once; None for as many as the cache or the accelerator
                takes (`default_chunk_size`). It changes speed and memory, not the result.
        """

    @abstractmethod
    def point(self) -> Named:
        """The single best setting of the weights, for a method that goes on from there."""

    def stream(self) -> torch.Generator:
        """Where its own weight samples come from, at the start: that of its fit's seed, or of 0."""
        return stream(self.record.seed if self.record else 0, "predict")

    def sampled(self) -> "Posterior":
        """The kind that has one output for each weight sample: itself, for most."""
        return self

    def tally(self) -> dict[str, int]:
        """What there is to count in the structure of its weights, by name; nothing for most."""
        return {}

    @property
    @abstractmethod
    def trainable_parameters(self) -> int:
        """How many numbers were learnt by the method itself."""

    @property
    @abstractmethod
    def stored_parameters(self) -> int:
        """How many numbers a saved posterior holds."""

    @property
    def member_parameters(self) -> int:
        """How many numbers one more weight sample would add to what is stored.

        0 where samples are drawn from a law; a network's worth, or its adapters, for members.
        """
        return 0

    def predict(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Predictive:
        """The distribution of y given x, averaged over weight samples. Arguments as `outputs`."""
        with torch.no_grad():
            raw = self.outputs(
                x, num_samples=num_samples, generator=generator, chunk_size=chunk_size
            )
            return self.likelihood.predictive(raw)


def check_samples(num_samples: int, chunk_size: int | None) -> None:
    """Raise `OptionError` unless there is at least one sample, and one at a time."""
    for name, value in (("num_samples", num_samples), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise OptionError(f"{name}={value}: expected at least 1.")


class WeightPosterior(Posterior):
    """A distribution over weights, put into a model that is not changed by it.

    Args:
        model: The network. It is called in eval mode, and left in the mode it was in.
        q: Distribution over some of its weights.
        likelihood: What its outputs mean.
        readout: Turns what the model returns into a tensor.
        vectorize: Whether samples run at once; None decides by the types of the layers.
        record: How it was fitted.
        prior: What q was fitted under; None where there was none, or it is not known. It is saved
            only with a record of examples that certify, since it is as large as q.

    Example:
        >>> from bayesify.distributions import MeanField
        >>> from bayesify.likelihoods import Categorical
        >>> net = nn.Linear(4, 3)
        >>> posterior = WeightPosterior(net, MeanField.around(net, scale=0.1), Categorical())
        >>> posterior.predict(torch.zeros(2, 4)).probs.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        q: WeightDistribution,
        likelihood: Likelihood,
        *,
        readout: Readout = read_tensor,
        vectorize: bool | None = None,
        record: FitRecord | None = None,
        prior: Prior | None = None,
    ) -> None:
        self.model = model
        self.q = q
        q.attach_(weights_of(model))
        self.likelihood = likelihood
        self.readout = readout
        self.vectorize = can_vectorize(model) if vectorize is None else vectorize
        self.record = record
        self.prior = prior
        self._footprints: dict[Any, Footprint] = {}
        self._trunks: dict[Any, Trunk | None] = {}

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(iter(weights_of(self.model).values())).device

    def outputs(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """See `Posterior.outputs`."""
        check_samples(num_samples, chunk_size)
        x = to_device(x, self.device)
        chunk_size = chunk_size or self._chunk_size(x, num_samples)
        with evaluating(self.model):
            return outputs(
                self.model,
                self.q,
                x,
                num_samples,
                generator=generator or self.stream(),
                chunk_size=chunk_size,
                vectorize=self.vectorize,
                readout=self.readout,
                within=self._within(x, self.q.size(num_samples), chunk_size),
            )

    def tally(self) -> dict[str, int]:
        """That of q."""
        return self.q.tally()

    def point(self) -> Named:
        """The mean of q.

        Raises:
            OptionError: it is that of several networks, each trained for itself, and no network.
        """
        check_one_network(self.q, f"{type(self).__name__}.point")
        return self.q.point()

    @property
    def trainable_parameters(self) -> int:
        """Parameters of q and of the likelihood that want a gradient."""
        learnt = [*self.q.parameters(), *self.likelihood.parameters()]
        return sum(each.numel() for each in learnt if each.requires_grad)

    @property
    def stored_parameters(self) -> int:
        """Numbers in q, in the likelihood, and in the weights that q does not replace.

        A prior that is saved for certificates is not counted: predictions do not need it.
        """
        return count(self.q.state_dict()) + count(self.likelihood.state_dict()) + count(self.base())

    @property
    def member_parameters(self) -> int:
        """Those of a member, where q has members."""
        return count(self.q.state_dict()) // self.q.size(1) if isinstance(self.q, Members) else 0

    def base(self) -> Named:
        """The model's weights and buffers that q does not replace.

        A table that q replaces is among them where torch holds a row of it fixed that is not zero.
        """
        covered = set(self.q.names) - set(self.q.perturbed)
        rows = held_rows(self.model, covered)
        covered -= {name for name, (_, row) in rows.items() if row.any()}
        everything = weights_of(self.model) | buffers_of(self.model)
        return {name: each for name, each in everything.items() if name not in covered}

    def replaced(self, q: WeightDistribution) -> Self:
        """The same with another distribution over the weights; the other parts are shared.

        The prior is not: it was that of the old one.
        """
        return type(self)(
            self.model,
            q,
            self.likelihood,
            readout=self.readout,
            vectorize=self.vectorize,
            record=self.record,
        )

    @classmethod
    def around(cls, posterior: "WeightPosterior") -> Self:
        """The same model, distribution and likelihood, seen as this kind; all parts are shared."""
        return cls(
            posterior.model,
            posterior.q,
            posterior.likelihood,
            readout=posterior.readout,
            vectorize=posterior.vectorize,
            record=posterior.record,
            prior=posterior.prior,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightPosterior":
        again = copy.copy(self)
        memo[id(self)] = again
        with lock_of(self.model):
            memo |= values_left(self.model)
            vars(again).update(copy.deepcopy(vars(self), memo))
        again.q.attach_(weights_of(again.model))  # the copy's own network, held once
        return again

    def __repr__(self) -> str:
        how = "at once" if self.vectorize else "one by one"
        return (
            f"{type(self).__name__}({type(self.model).__name__}, {type(self.q).__name__} over "
            f"{len(self.q.names)} tensors, {type(self.likelihood).__name__}, samples {how})"
        )

    def _chunk_size(self, x: Inputs, num_samples: int) -> int:
        if not self.vectorize:
            return 1
        shapes = tuple(each.shape[1:] for each in tensors_of(x))
        if shapes not in self._footprints:
            self._footprints[shapes] = Footprint.of(self.model, self.q, x)
        samples = self.q.size(num_samples)
        return default_chunk_size(self._footprints[shapes], x, self.device, samples)

    def _within(self, x: Inputs, size: int, chunk_size: int) -> Callable[[], Any]:
        """The context of each call of the model: what samples have in common is computed once.

        One call for all samples does so by itself; and who differentiates needs the whole graph.
        """
        if (self.vectorize and chunk_size >= size) or size == 1 or torch.is_grad_enabled():
            return nullcontext
        shapes = tuple(each.shape[1:] for each in tensors_of(x))
        if shapes not in self._trunks:
            self._trunks[shapes] = Trunk.of(self.model, self.q.names, x)
        trunk = self._trunks[shapes]
        return nullcontext if trunk is None else trunk.shared(x)
