"""The run that learns every layer by Bayesian regression on pseudo-targets: BALI at work.

One step on a batch (equations in `numerics/layer_regression.py`):

    1. a forward pass of all K members with noise, the inputs h of every layer on a tape
    2. a backward pass of the summed negative log likelihood: G for every layer
    3. a backward pass with labels drawn from the model: F, hence V
    4. for every layer at once: P and M from h, G and V

No optimiser touches a layer's weights. Weights that belong to no layer (gains of norms) follow the
gradient of step 2 by Adam. A member whose numbers are not finite keeps those it had.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from bayesify.core.batches import first_example, to_device
from bayesify.core.errors import OptionError
from bayesify.core.modes import evaluating, train_
from bayesify.core.types import Draw, Inputs, Named, Readout
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.forward import outputs as forward
from bayesify.likelihoods import Likelihood
from bayesify.methods.bali.checks import PATIENCE, diverged
from bayesify.methods.bali.layer import LearntLayer
from bayesify.methods.bali.options import LayerwiseOptions, Scales
from bayesify.methods.bali.state import restore_, state_of
from bayesify.numerics.effective_parameters import with_joint_spread
from bayesify.numerics.layer_regression import LayerRegression, members_where
from bayesify.numerics.linalg import cholesky
from bayesify.numerics.noise import single_or_better
from bayesify.posteriors.base import FitRecord
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.checks import check_batch
from bayesify.weights.named import copied
from bayesify.weights.taped import Tape


class LayerwiseRun:
    """BALI on one network. Made by `BALI.start` and `BALI.resume`.

    Args:
        model: The network; called in train mode, its weights are not read where q sets them.
        likelihood: Its learnt noise is estimated as the run goes.
        layers: What is learnt by regression.
        points: Other weights that are learnt, (K, *shape).
        buffers: Of the network, (K, *shape).
        options: Of the method.
        scales: Of prior, noise and data.
        num_data: Training examples N.
        steps_per_epoch: Batches in an epoch.
        epochs: Passes over the data; the schedule ends with them.
        generator: Source of the noise.
        vectorize: Whether members run at once.
        readout: As everywhere.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        layers: Iterable[LearntLayer],
        *,
        points: Named,
        buffers: Named,
        options: LayerwiseOptions,
        scales: Scales,
        num_data: int,
        steps_per_epoch: int,
        epochs: int,
        generator: torch.Generator,
        vectorize: bool,
        readout: Readout,
    ) -> None:
        self.epochs = epochs
        self.model, self.likelihood, self.layers = train_(model), likelihood, list(layers)
        self.points = {n: nn.Parameter(each) for n, each in copied(points).items()}
        self.buffers = copied(buffers)
        self.options, self.scales, self.num_data = options, scales, num_data
        self.total_steps = epochs * steps_per_epoch
        self.generator, self.vectorize, self.readout = generator, vectorize, readout
        self.dtype = next(model.parameters()).dtype
        self.steps, self.full = 0, 1  # steps taken, examples in a full batch
        self.failures = torch.zeros(self.members, dtype=torch.long)
        self.adam = torch.optim.Adam(self.points.values(), options.rest_lr) if points else None
        self.record: FitRecord | None = None  # of the fit that this run continues

    @property
    def members(self) -> int:
        """K."""
        return len(self.layers[0].regression.mean)

    def step(self, inputs: Inputs, target: Tensor) -> dict[str, float]:
        """Learn from one batch of the training data, each row standing for N / (B T) of them.

        A batch that is smaller than others (the last) replaces a smaller share of the past.
        """
        size = len(target)
        self.full = max(self.full, size)
        rate = self._rate() * size / self.full
        weight = self.num_data / (size * self.scales.temperature)
        most = self.options.rate
        rates = {
            each.name: rate * min(1, each.highest_rate(self.full, self.num_data) / most)
            for each in self.layers
        }
        return self._learn(inputs, target, rate=rate, rates=rates, weight=weight)

    def update(
        self, inputs: Inputs, target: Tensor, *, forgetting: float | None = None
    ) -> dict[str, float]:
        """Learn from a batch of a stream, at any time.

        Every example counts 1 / T times, and what was learnt before is forgotten at a rate:
        P <- (1 - forgetting) P + H^T H / T + ..., so that in the long run the posterior rests on
        the last B / forgetting examples or so.

        Args:
            inputs: One batch.
            target: Its targets.
            forgetting: Share of the past that is forgotten, in (0, 1]; None for the option's.

        Raises:
            DataError: numbers that are not finite, or impossible targets; nothing has been learnt
                from them.
        """
        rate = self.options.forgetting if forgetting is None else forgetting
        if not 0 < rate <= 1:
            raise OptionError(f"forgetting={rate}: expected a share above 0 and at most 1.")
        inputs, target = to_device((inputs, target), next(self.model.parameters()).device)
        check_batch(inputs, target, f"update {self.steps}")
        with evaluating(self.model):
            outputs = self.look(first_example(inputs))[0]
        self.likelihood.check(outputs[0].expand(len(target), *outputs.shape[2:]), target)
        alone = len(target) == 1  # of which batch norm has no statistics
        with evaluating(self.model) if alone else nullcontext():
            return self._learn(
                inputs,
                target,
                rate=rate,
                rates={layer.name: rate for layer in self.layers},
                weight=1 / (rate * self.scales.temperature),
            )

    def end_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def posterior(self) -> WeightPosterior:
        """What has been learnt so far; it does not change when learning goes on."""
        factor_type = single_or_better(self.dtype)
        regressions = {layer.name: layer.regression for layer in self.layers}
        q = MatrixNormal(
            {n: each for layer in self.layers for n, each in layer.means(self.dtype).items()},
            row={
                name: cholesky(each.precision, name=f"precision of layer {name!r}").to(factor_type)
                for name, each in regressions.items()
            },
            column={name: each.column.to(factor_type) for name, each in regressions.items()},
            points={name: each.detach() for name, each in self.points.items()},
            buffers=self.buffers,
            prior_precision={n: each.prior_precision for n, each in regressions.items()},
        )
        return WeightPosterior(
            self.model,
            q,
            copy.deepcopy(self.likelihood),
            readout=self.readout,
            vectorize=self.vectorize,
            record=self.record,
        )

    def state_dict(self) -> Named:
        """Everything that the run's future depends on, as tensors: for safetensors, say."""
        return state_of(self)

    def load_state_dict(self, state: Named) -> None:
        """Go on exactly where the run that gave `state` was."""
        restore_(self, state)

    def look(self, inputs: Inputs) -> tuple[Tensor, Tape]:
        """A forward pass of the means, without noise, on a tape. In train mode it moves buffers."""
        with torch.no_grad():
            return self._forward(inputs, noise=False)

    def _learn(
        self,
        inputs: Inputs,
        target: Tensor,
        *,
        rate: float,
        rates: dict[str, float],
        weight: float,
    ) -> dict[str, float]:
        held = copied(self.buffers)  # a forward pass in train mode writes them
        outputs, tape = self._forward(inputs, noise=self.options.forward_noise)
        nll = -self.likelihood.log_prob(outputs, target)  # (K, B)
        refresh = self.steps % self.options.refresh == 0
        wanted = [tape.anchor, *self.points.values()]
        _, *slopes = torch.autograd.grad(nll.sum(), wanted, retain_graph=refresh, allow_unused=True)
        gradients = {layer.name: layer.gradient(tape) for layer in self.layers}
        if refresh and any(self._known_covariance(layer, outputs) is None for layer in self.layers):
            self._backward_drawn_labels(outputs, tape)
        candidates, sound = [], torch.isfinite(nll.detach()).all(1) & self._finite_buffers()
        for layer in self.layers:
            found, ok = self._updated(
                layer, tape, gradients[layer.name], outputs, rates[layer.name], weight, len(target)
            )
            sound = sound & ok & found.finite()
            candidates.append(found)
        self._count_failures(sound, candidates, nll)
        for layer, found in zip(self.layers, candidates, strict=True):
            layer.regression = found if sound.all() else found.where(sound, layer.regression)
        if not sound.all():
            self.buffers = {n: members_where(sound, e, held[n]) for n, e in self.buffers.items()}
        self._move_points(slopes, sound, len(target), rate)
        if sound.any():
            explained = self._explained(outputs.detach(), inputs)
            self.likelihood.reestimate_(explained[sound], target, rate=rate)
        self.steps += 1
        loss = nll.detach()[sound].mean().item() if sound.any() else math.nan
        return {"loss": loss, "rolled_back": (~sound).float().mean().item()}

    def _updated(
        self,
        layer: LearntLayer,
        tape: Tape,
        gradient: Tensor,
        outputs: Tensor,
        rate: float,
        weight: float,
        size: int,
    ) -> tuple[LayerRegression, Tensor]:
        found, sound = layer.regression, torch.ones(self.members, dtype=torch.bool)
        refresh = self.steps % self.options.refresh == 0
        known = self._known_covariance(layer, outputs)
        precision = self.likelihood.output_precision(outputs)
        targets = None
        if precision is not None and layer.is_output:
            targets = layer.outputs(tape) - gradient / precision.to(gradient)
        if known is not None:
            found = found.with_covariance(known)
        elif refresh:
            first = 1.0 if self.steps == 0 else rate  # of F there is nothing yet to average with
            found, sound = found.with_fisher(
                layer.gradient(tape), rate=first, damping=self.scales.damping
            )
        counted = layer.is_output or known is None  # of a V that is given F tells nothing
        if precision is not None and counted and refresh and not self.options.evidence:
            found = layer.bounded(
                found,
                examples=weight * size,
                dims=outputs[0, 0].numel(),
                least=self.scales.prior_precision,
            )
        if self.options.evidence and refresh and self.steps >= self.options.warmup:
            found = found.with_evidence(rate=rate)
        found, ok = found.updated(
            layer.features(tape),
            gradient,
            rate=rate,
            weight=weight,
            cap=self.options.cap,
            refresh=refresh,
            targets=targets,
        )
        return found, sound.to(ok) & ok

    def _explained(self, outputs: Tensor, inputs: Inputs) -> Tensor:
        """Outputs for the noise's estimate."""
        precision = self.likelihood.output_precision(outputs)
        if precision is None or not self.options.forward_noise:
            return outputs
        held, (mean, _) = copied(self.buffers), self.look(inputs)
        self.buffers = held
        return with_joint_spread(outputs, mean, precision)

    def _known_covariance(self, layer: LearntLayer, outputs: Tensor) -> float | Tensor | None:
        """The number v where V = v I is given, by an option or by the likelihood."""
        precision = self.likelihood.output_precision(outputs) if layer.is_output else None
        if precision is not None:
            return 1 / precision
        if layer.is_output and self.options.bound_output:
            return 2.0  # Boehning 1992: the softmax's curvature is at most I / 2
        return self.options.noise_covariance

    def _backward_drawn_labels(self, outputs: Tensor, tape: Tape) -> None:
        """Put the gradients for labels drawn from the model on the tape."""
        drawn = self.likelihood.sample(outputs.detach(), generator=self.generator)
        folded = outputs.flatten(0, 1).unsqueeze(0)  # each member's labels are its own
        loss = -self.likelihood.log_prob(folded, drawn.flatten(0, 1)).sum()
        torch.autograd.grad(loss, [tape.anchor])

    def _forward(self, inputs: Inputs, *, noise: bool) -> tuple[Tensor, Tape]:
        members: Draw = {layer.name: layer.members(self.dtype) for layer in self.layers}
        members |= {"": self.points | self.buffers}

        def weights(member: Draw) -> Named:
            named = dict(member[""])
            for layer in self.layers:
                law = member[layer.name]
                named |= layer.noisy(law, self.generator) if noise else law["loc"]
            return named

        return forward.tape(
            self.model,
            members,
            weights,
            inputs,
            layers=[layer.name for layer in self.layers],
            vectorize=self.vectorize,
            readout=self.readout,
        )

    def _finite_buffers(self) -> Tensor:
        """Which members' buffers hold finite numbers."""
        total = torch.zeros(self.members, device=self.layers[0].regression.mean.device)
        for each in self.buffers.values():
            total = total + each.float().view(self.members, -1).sum(1)
        return torch.isfinite(total)

    def _rate(self) -> float:
        """rho: a linear warm-up, then a cosine from `rate` to `final_rate`."""
        low, high = min(self.options.final_rate, self.options.rate), self.options.rate
        share = min(1.0, self.steps / max(1, self.total_steps))
        rate = low + (high - low) * (1 + math.cos(math.pi * share)) / 2
        return rate * min(1.0, (self.steps + 1) / (self.options.warmup + 1))

    def _move_points(
        self, slopes: Sequence[Tensor | None], sound: Tensor, size: int, rate: float
    ) -> None:
        if self.adam is None:
            return
        held = {name: each.detach().clone() for name, each in self.points.items()}
        for parameter, slope in zip(self.points.values(), slopes, strict=True):
            if slope is not None:
                parameter.grad = members_where(sound, slope / size, torch.zeros_like(slope))
        self.adam.param_groups[0]["lr"] = self.options.rest_lr * rate / self.options.rate
        self.adam.step()
        with torch.no_grad():
            for name, each in self.points.items():
                each.copy_(members_where(sound, each, held[name]))

    def _count_failures(
        self, sound: Tensor, candidates: list[LayerRegression], nll: Tensor
    ) -> None:
        self.failures = torch.where(sound.cpu(), 0, self.failures + 1)
        if self.failures.max() <= PATIENCE:
            return
        lost = (self.failures > PATIENCE).nonzero().flatten().tolist()
        loss = nll.detach().mean().item()
        raise diverged(self.layers, candidates, lost, self.steps, loss, self.scales.damping)
