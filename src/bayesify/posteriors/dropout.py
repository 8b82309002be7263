"""A posterior whose weight samples are dropout masks: the network's own dropout stays on.

Source: Gal & Ghahramani 2016, arXiv 1506.02142, sections 3 and 4: a network that was trained with
dropout, run with it, is a sample of an approximate posterior. In front of a linear layer a mask z
of entries Bernoulli(1 - p) is a draw of its weights,

    W (x * z) / (1 - p)  =  [W diag(z) / (1 - p)] x,

so that one mask is one network. Hence a sample here has *one mask for each call of a dropout layer,
shared by all examples of the batch*, of the shape of the activation without its batch axis. torch's
own layers in train mode give every example a mask of its own. For a single example the two have the
same law, and so have averages over samples; but shared masks make a prediction a function of x and
of the sample alone, whatever else is in the batch, and a sample a function that can be attacked or
drawn. Masks come from generators on the CPU, seeded for each sample, then for each call in order;
the first positions of a longer text have those of a shorter one.

Only dropout layers are on (`LAYERS`); all else, batch norm above all, is in eval mode. Dropout that
is no layer cannot be seen and stays off: that of attention weights inside `nn.MultiheadAttention`,
between the layers of `nn.LSTM`, and `F.dropout` in a model's own code.

Samples run one after the other: S samples cost S forward passes, and no more memory than one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.batches import batch_size, to_device
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.modes import attention_for_vmap, evaluating
from bayesify.core.types import Inputs, Named, Readout
from bayesify.distributions.particles import Particles
from bayesify.forward.checkpointing import no_checkpointing
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import Likelihood
from bayesify.posteriors.base import FitRecord, Posterior, check_samples
from bayesify.posteriors.weight import WeightPosterior
from bayesify.tracing.trace import call
from bayesify.weights.named import assign_, buffers_of, copied, count, weights_of

WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
"""They drop channels: a mask has one entry for each, at all positions."""

KEEPING_MOMENTS = (nn.AlphaDropout, nn.FeatureAlphaDropout)
"""What they drop becomes `SATURATED`, and they keep the mean and variance of what is normal."""

LAYERS = (nn.Dropout, nn.AlphaDropout, *WHOLE_CHANNELS)
"""The layers whose masks are samples, where their p is above 0."""

SATURATED = -1.7580993408473766
"""The limit of SELU on the left, -lambda alpha; Klambauer et al. 2017, arXiv 1706.02515, eq. 14."""


def dropout_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that drop anything, by name.

    Raises:
        UnsupportedModelError: there are none.

    Example:
        >>> list(dropout_layers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Dropout(0))))
        ['1']
    """
    named: dict[str, nn.Module] = {
        n: each for n, each in model.named_modules() if isinstance(each, LAYERS) and each.p
    }
    if not named:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no dropout layer with p above 0 whose masks could be the "
            f"samples (dropout of attention weights, inside nn.LSTM and by F.dropout does not "
            f"count); add nn.Dropout to the network, or take a method that needs none, such as "
            f"bayesify.STF or bayesify.Ensemble."
        )
    return named


def dropped(
    layer: nn.Module, activation: Float[Tensor, "batch ..."], *, generator: torch.Generator
) -> Float[Tensor, "batch ..."]:
    """What a dropout layer makes of an activation, with one mask for all examples.

    Args:
        layer: One of `LAYERS`.
        activation: Its input, batch first; behind it the channels, where it drops these.
        generator: Source of the mask, on the CPU.
    """
    p, shape = float(layer.p), activation.shape[1:]  # type: ignore[arg-type]
    if isinstance(layer, WHOLE_CHANNELS):
        shape = (*shape[:1], *[1] * len(shape[1:]))
    keep = (torch.rand(shape, generator=generator) >= p).to(activation)
    if p == 1:
        return activation * keep  # nothing is left to be scaled
    if not isinstance(layer, KEEPING_MOMENTS):
        return activation * (keep / (1 - p))
    scale = ((1 - p) * (1 + p * SATURATED**2)) ** -0.5
    return scale * (activation * keep + SATURATED * (1 - keep) - SATURATED * p)


class _Masks:
    """While `on`, dropout layers in eval mode drop with masks of their own, fresh in each call.

    Args:
        model: The network, whose modes stay as they are.
        size: B, the examples of a batch.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        self.layers, self.size = dropout_layers(model), size
        self.generator = torch.Generator()  # gives a seed for each call of a layer
        self.calls = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self.layers.items()
        ]
        try:
            with attention_for_vmap():  # the fused layers would pass the dropout layers by
                yield
        finally:
            for each in handles:
                each.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(layer: nn.Module, args: Any, activation: Tensor) -> Tensor:
            if activation.ndim == 0 or len(activation) != self.size:
                raise UnsupportedModelError(
                    f"dropout layer `{name}` acts on an activation of shape "
                    f"{tuple(activation.shape)} in a batch of {self.size}: expected the batch as "
                    f"the first axis, so that all examples can share a mask; build the layers "
                    f"around it with the batch first (batch_first=True), or take bayesify.STF or "
                    f"bayesify.Ensemble."
                )
            self.calls += 1
            return dropped(layer, activation, generator=_next(self.generator))

        return hook


class DropoutPosterior(Posterior):
    """One trained network, and a sample for each draw of its dropout masks.

    Args:
        model: The network, with its trained weights. It is called in eval mode but for its dropout
            layers, and left in the mode it was in.
        likelihood: What its outputs mean.
        readout: Turns what the model returns into a tensor.
        record: How it was fitted.

    Raises:
        UnsupportedModelError: the network has no dropout layers.

    Example:
        >>> from bayesify.likelihoods import Categorical
        >>> net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
        >>> posterior = DropoutPosterior(net, Categorical())
        >>> posterior.predict(torch.ones(2, 4), num_samples=8).logits.shape
        torch.Size([8, 2, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        readout: Readout = read_tensor,
        record: FitRecord | None = None,
    ) -> None:
        dropout_layers(model)  # raises when there are none
        self.model = model
        self.likelihood = likelihood
        self.readout = readout
        self.record = record

    @classmethod
    def around(cls, trained: WeightPosterior) -> Self:
        """With the weights of a posterior of one network, which are written into its model.

        Raises:
            UnsupportedModelError: there are several networks, or no dropout layers.
        """
        if not isinstance(trained.q, Particles) or trained.q.size(1) != 1:
            raise UnsupportedModelError(
                f"DropoutPosterior.around: expected a posterior of one network, as bayesify.MAP "
                f"fits it, got {trained!r}; the samples are the dropout's."
            )
        assign_(trained.model, trained.point())
        for name, each in trained.model.named_parameters():
            each.requires_grad_(name not in trained.q.frozen)
        return cls(
            trained.model, trained.likelihood, readout=trained.readout, record=trained.record
        )

    def without_dropout(self) -> WeightPosterior:
        """The trained network alone, with a copy of its weights and the dropout off."""
        return WeightPosterior(
            self.model,
            Particles.of_models([self.model]),
            self.likelihood,
            readout=self.readout,
            record=self.record,
        )

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next(self.model.parameters()).device

    def outputs(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Float[Tensor, "samples batch ..."]:
        """See `Posterior.outputs`; samples run one by one whatever `chunk_size` is.

        Raises:
            UnsupportedModelError: the model calls none of its dropout layers, or one of them with
                something else than the batch as the first axis, or is checkpointed.
        """
        check_samples(num_samples, chunk_size)
        generator = generator or self.stream()
        x = to_device(x, self.device)
        masks, passes = _Masks(self.model, batch_size(x)), []
        with evaluating(self.model), no_checkpointing(), masks.on():
            for _ in range(num_samples):
                masks.generator = _next(generator)
                passes.append(self.readout(call(self.model, x)))
        if not masks.calls:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} calls none of its dropout layers "
                f"({', '.join(masks.layers)}), so that all samples would be equal; use nn.Dropout "
                f"in `forward`, or take bayesify.STF or bayesify.Ensemble."
            )
        return torch.stack(passes)

    def point(self) -> Named:
        """The trained weights and buffers."""
        return copied(weights_of(self.model) | buffers_of(self.model))

    @property
    def trainable_parameters(self) -> int:
        """Parameters of the network and of the likelihood that want a gradient."""
        learnt = [*self.model.parameters(), *self.likelihood.parameters()]
        return sum(each.numel() for each in learnt if each.requires_grad)

    @property
    def stored_parameters(self) -> int:
        """Numbers in the network and in the likelihood: masks are drawn, not stored."""
        held = weights_of(self.model) | buffers_of(self.model)
        return count(held) + count(self.likelihood.state_dict())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({type(self.model).__name__}, "
            f"{len(dropout_layers(self.model))} dropout layers, "
            f"{type(self.likelihood).__name__}, samples one by one)"
        )


def _next(generator: torch.Generator) -> torch.Generator:
    """A generator on the CPU with a seed drawn from another."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))
