"""A fitted distribution over weights with its model and likelihood: what `fit` returns.

Two questions are asked of it. Whose outputs: of the network, or with `tangent` of its tangent,

    f_lin(x, w) = f(x, w*) + J(x) (w - w*),    J = df / dw at w*,    w ~ q,    w* = q.point()

Source: Khan et al. 2019, arXiv 1906.01930; Immer et al. 2021, arXiv 2008.08216 (the "GLM
predictive"). Curvature of the linearised network belongs to the linearised network: weights drawn
by it can be far off in the network itself, where that is not linear. For a Gaussian q the outputs
are Gaussian, with the covariance J cov(w) J^T; their samples go through the likelihood as any
others, and nothing is approximated but the average. J is never formed. A sample costs one product
with it, forward in one pass beside the network's own (`torch.func.jvp`), so 2 to 3 forward passes
whatever the number of outputs.

And how samples are averaged: over "samples", p(y | x) = 1/S sum_s p(y | x, w_s), or for classes by
"probit", whose logits are m / sqrt(1 + pi v / 8) of `numerics/probit.py` with m = f(x, w*). Here v
is the mean square of the samples' deviations from m, so S decides how well it is known (to a
quarter at S = 32). Right where outputs are linear in the random weights, or linearised; elsewhere m
is not their mean. It costs one more pass of the network, for m. What the weights disagree on,
mutual information, is of the S samples under either; so are certificates and far-away limits, which
are of the weights' law.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesify.core.batches import tensors_of, to_device
from bayesify.core.clones import values_left
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.isolation import lock_of
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs, Named, Readout
from bayesify.distributions.base import Members, WeightDistribution, check_one_network
from bayesify.distributions.priors import Prior
from bayesify.forward.calling import call_at
from bayesify.forward.chunking import Footprint, can_vectorize, default_chunk_size
from bayesify.forward.outputs import linearised_outputs, outputs, read_tensor
from bayesify.forward.trunk import Trunk
from bayesify.likelihoods import Likelihood
from bayesify.likelihoods.predictive import ClassPredictive, MultiLabelPredictive, Predictive
from bayesify.numerics.noise import widened
from bayesify.numerics.probit import damped
from bayesify.posteriors.base import FitRecord, Posterior, check_samples
from bayesify.weights.held_rows import held_rows
from bayesify.weights.named import buffers_of, count, weights_of

AVERAGES = ("samples", "probit")
"""How samples are averaged into a predictive."""

OF_LOGITS = ("classification", "multilabel")
"""Tasks whose outputs can be damped."""


@final
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
        tangent: Whether outputs are of the network's tangent at q's point, or of the network.
        average: How samples are averaged into a predictive: "samples" or, for classes, "probit".

    Raises:
        OptionError: another `average`; or q is made of several networks, each trained for itself,
            which have neither a tangent nor a mean in common.
        UnsupportedModelError: a tangent with a q that sets buffers, such as members' batch norm
            statistics; or a likelihood of numbers by probit, whose average needs no approximation.

    Example:
        >>> from bayesify.distributions import MeanField
        >>> from bayesify.likelihoods import Categorical
        >>> net = nn.Linear(4, 3)
        >>> posterior = WeightPosterior(net, MeanField.around(net, scale=0.1), Categorical())
        >>> posterior.predict(torch.zeros(2, 4)).probs.shape
        torch.Size([2, 3])
        >>> posterior.replaced(tangent=True, average="probit")
        WeightPosterior(Linear, MeanField over 2 tensors, Categorical, tangent, by probit, samples
        at once)
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
        tangent: bool = False,
        average: str = "samples",
    ) -> None:
        _check_seen(model, q, likelihood, tangent, average)
        self.model = model
        self.q = q
        q.attach_(weights_of(model))
        self.likelihood = likelihood
        self.readout = readout
        self.vectorize = can_vectorize(model) if vectorize is None else vectorize
        self.record = record
        self.prior = prior
        self.tangent = tangent
        self.average = average
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
    ) -> Float[Tensor, "samples batch ..."]:
        """See `Posterior.outputs`.

        Raises:
            UnsupportedModelError: of a tangent, where a layer has no derivative in forward mode
                (nn.LSTM has none).
        """
        check_samples(num_samples, chunk_size)
        x = to_device(x, self.device)
        chunk_size = chunk_size or self._chunk_size(x, num_samples)
        how: dict[str, Any] = {
            "generator": generator or self.stream(),
            "chunk_size": chunk_size,
            "vectorize": self.vectorize,
            "readout": self.readout,
        }
        with evaluating(self.model):
            if self.tangent:
                return linearised_outputs(self.model, self.q, x, num_samples, **how)
            how["within"] = self._within(x, self.q.size(num_samples), chunk_size)
            return outputs(self.model, self.q, x, num_samples, **how)

    def predictive(self, x: Inputs, outputs: Float[Tensor, "samples batch ..."]) -> Predictive:
        """See `Posterior.predictive`; by probit it costs a pass of the network at its point."""
        predictive = super().predictive(x, outputs)
        if self.average == "samples":
            return predictive
        if not isinstance(predictive, ClassPredictive | MultiLabelPredictive):
            raise UnsupportedModelError(
                f"WeightPosterior(average='probit') damps logits: expected a predictive that holds "
                f"them, got {type(predictive).__name__}; take average='samples'."
            )
        with evaluating(self.model):
            at = to_device(x, self.device)
            mean = widened(call_at(self.model, self.q.point(), at, self.readout))
        variance = (predictive.logits - mean).square().mean(0)
        return replace(predictive, damped=damped(mean, variance))

    def sampled(self) -> "WeightPosterior":
        """The same with its samples averaged; itself, where they are."""
        return self if self.average == "samples" else self.replaced(average="samples")

    def tally(self) -> dict[str, int]:
        """That of q."""
        return self.q.tally()

    def point(self) -> Named:
        """The mean of q.

        Raises:
            OptionError: it is that of several networks, each trained for itself, and no network.
        """
        check_one_network(self.q, "WeightPosterior.point")
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

    def replaced(
        self,
        q: WeightDistribution | None = None,
        *,
        tangent: bool | None = None,
        average: str | None = None,
    ) -> "WeightPosterior":
        """The same with another distribution over the weights, or seen otherwise; None: as it is.

        All other parts are shared, but the prior is not with another distribution: it was that of
        the old one.
        """
        return WeightPosterior(
            self.model,
            self.q if q is None else q,
            self.likelihood,
            readout=self.readout,
            vectorize=self.vectorize,
            record=self.record,
            prior=self.prior if q is None else None,
            tangent=self.tangent if tangent is None else tangent,
            average=self.average if average is None else average,
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
        seen = ["tangent"] * self.tangent + ["by probit"] * (self.average == "probit")
        how = [*seen, "samples at once" if self.vectorize else "samples one by one"]
        return (
            f"WeightPosterior({type(self.model).__name__}, {type(self.q).__name__} over "
            f"{len(self.q.names)} tensors, {type(self.likelihood).__name__}, {', '.join(how)})"
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


def _check_seen(
    model: nn.Module, q: WeightDistribution, likelihood: Likelihood, tangent: bool, average: str
) -> None:
    """Raise unless a posterior of these can be seen so; see `WeightPosterior`."""
    if average not in AVERAGES:
        raise OptionError(f"average={average!r}: expected one of {', '.join(AVERAGES)}.")
    if tangent:
        check_one_network(q, "WeightPosterior(tangent=True)")
        if held := sorted(set(q.names) & set(buffers_of(model))):
            raise UnsupportedModelError(
                f"WeightPosterior(tangent=True): expected a distribution over weights, got a "
                f"{type(q).__name__} that sets the buffers {', '.join(held)} too, in which nothing "
                f"is linearised; take tangent=False."
            )
    if average == "probit":
        check_one_network(q, "WeightPosterior(average='probit')")
        if likelihood.task not in OF_LOGITS:
            raise UnsupportedModelError(
                f"WeightPosterior(average='probit') damps logits: expected a likelihood of "
                f"classes, got {type(likelihood).__name__}; take average='samples'."
            )
