"""When layerwise learning cannot begin, or cannot go on, and what it says then."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from bayesify.core.batches import first_example
from bayesify.core.errors import DivergenceError, OptionError, UnsupportedModelError
from bayesify.core.modes import evaluating
from bayesify.core.types import Inputs
from bayesify.likelihoods import Likelihood
from bayesify.methods.bali.layer import LearntLayer
from bayesify.numerics.layer_regression import LayerRegression
from bayesify.numerics.linalg import cholesky
from bayesify.weights.noise_scope import NoiseScope, noise_scopes
from bayesify.weights.taped import Tape

PATIENCE = 20
"""Steps in a row for which a member may be rolled back before the run gives up."""


class Run(Protocol):
    """What is read of a run."""

    model: nn.Module
    layers: list[LearntLayer]
    dtype: torch.dtype

    def look(self, inputs: Inputs) -> tuple[Tensor, Tape]:
        """A forward pass of the means."""
        ...


def check_likelihood(likelihood: Likelihood) -> None:
    """Refuse one whose own numbers BALI cannot estimate."""
    learnt = [name for name, each in likelihood.named_parameters() if each.requires_grad]
    if learnt and type(likelihood).reestimate_ is Likelihood.reestimate_:
        raise OptionError(
            f"{type(likelihood).__name__} learns {', '.join(learnt)} by a gradient, which BALI "
            f"does not follow; define `reestimate_`, or fix them (requires_grad_(False))."
        )


def check_precision(model: nn.Module) -> None:
    """Refuse weights whose statistics overflow."""
    half = [name for name, each in model.named_parameters() if each.dtype == torch.float16]
    if half:
        raise UnsupportedModelError(
            f"BALI: expected weights in float32 or float64, got float16 in `{half[0]}`, where "
            f"gradients divided by the noise's variance overflow; use `model.float()`."
        )


def probe(run: Run, inputs: Inputs) -> None:
    """See how a pass uses each layer: rows of an example, noise, whether it makes the output."""
    scopes = noise_scopes(run.model, inputs)
    with evaluating(run.model):
        _, tape = run.look(first_example(inputs))
    for layer in run.layers:
        layer.is_output = tape.is_output(layer.name)
        features = layer.features(tape)
        layer.rows_per_example = features.shape[1]
        layer.scope = scopes.get(layer.name, NoiseScope.BATCH)
        types = {features.dtype, layer.outputs(tape).dtype}
        if types != {run.dtype}:
            raise UnsupportedModelError(
                f"BALI: layer {layer.name!r} computes in {', '.join(sorted(map(str, types)))}, its "
                f"weights are {run.dtype}; take torch.autocast out of the forward pass."
            )


def diverged(
    layers: Iterable[LearntLayer],
    candidates: Iterable[LayerRegression],
    lost: list[int],
    steps: int,
    loss: float,
    damping: float,
) -> DivergenceError:
    """The error for members that gave no finite numbers for too many steps.

    Raises:
        NotPositiveDefiniteError: instead, where a matrix that has no factor is the cause.
    """
    for layer, found in zip(layers, candidates, strict=True):
        for member in lost:
            for what, matrix in found.factorised(damping).items():
                if torch.isfinite(matrix[member]).all():
                    name = f"{what} of layer {layer.name!r}, member {member}"
                    cholesky(matrix[member], name=name)
    return DivergenceError(
        f"member {lost} gave numbers that are not finite for {PATIENCE} steps in a row, until "
        f"step {steps} (loss {loss:g}); lower `rate` or `cap`, "
        f"raise `damping`, and look for extreme values in the data."
    )
