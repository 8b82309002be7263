"""What a fit gives, whatever is random in it: predictions, and the record of how it came to be."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesify.core.errors import OptionError
from bayesify.core.streams import stream
from bayesify.core.types import Inputs, Named
from bayesify.likelihoods import Likelihood
from bayesify.likelihoods.predictive import Predictive


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
            num_samples: S. A finite set of members gives all M whatever S is.
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
            return self.predictive(x, raw)

    def predictive(self, x: Inputs, outputs: Float[Tensor, "samples batch ..."]) -> Predictive:
        """What `predict` makes of the `outputs` at x; differentiable in both."""
        return self.likelihood.predictive(outputs)


def check_samples(num_samples: int, chunk_size: int | None) -> None:
    """Raise `OptionError` unless there is at least one sample, and one at a time."""
    for name, value in (("num_samples", num_samples), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise OptionError(f"{name}={value}: expected at least 1.")
