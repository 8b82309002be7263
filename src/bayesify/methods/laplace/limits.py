"""What laplace-torch cannot do, said before any time is spent on training.

It has forms for two likelihoods, and Kronecker factors for linear layers and convolutions in two
dimensions, which it takes from inputs and gradients at calls of the layer: a weight that is read in
another way, or twice, would give wrong factors without a word, or fail at the end.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bayesify.core.batches import rows
from bayesify.core.errors import UnsupportedLayerError, UnsupportedModelError
from bayesify.core.modes import evaluating
from bayesify.likelihoods import Categorical, Gaussian, Likelihood
from bayesify.tracing.trace import call
from bayesify.training.problem import Problem

KINDS: dict[type[Likelihood], str] = {Categorical: "classification", Gaussian: "regression"}
"""The likelihoods that laplace-torch has a form for."""

KRONECKER_LAYERS = (nn.Linear, nn.Conv2d)
"""The layers whose curvature it factorises."""


def check_likelihood(likelihood: Likelihood) -> None:
    """There must be a form for it.

    Raises:
        UnsupportedModelError: there is none.
    """
    if type(likelihood) not in KINDS or likelihood.options().get("scale") == "output":
        kind = type(likelihood).__name__
        got = f"{kind}('output')" if isinstance(likelihood, Gaussian) else kind
        raise UnsupportedModelError(
            f"laplace-torch has no form for the likelihood {got}; expected Categorical, or "
            f"Gaussian with one noise scale (a number or 'learnt'). bayesify.DiagonalLaplace and "
            f"bayesify.SWAG take any likelihood."
        )


def check_layers(problem: Problem, names: list[str]) -> None:
    """Kronecker factors are of linear layers and convolutions that run once, bias and all.

    Raises:
        UnsupportedLayerError: one of `names` belongs to another layer.
    """
    aliases: dict[int, list[str]] = {}
    for alias, each in problem.model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(each), []).append(alias)
    shared = {found[0]: found for found in aliases.values() if len(found) > 1}
    for name in names:
        owner, _, own = name.rpartition(".")
        layer = problem.model.get_submodule(owner)
        kind = f"`{owner or type(problem.model).__name__}` ({type(layer).__name__})"
        if not isinstance(layer, KRONECKER_LAYERS) or own not in ("weight", "bias"):
            raise _refusal(f"`{name}` is of {kind}, which is no linear layer or convolution")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise _refusal(f"`{name}` is of {kind} with padding_mode={layer.padding_mode!r}")
        if name in shared:
            raise _refusal(f"`{name}` is shared under the names {', '.join(shared[name])}")
        whole = {f"{owner}.{each}".lstrip(".") for each, _ in layer.named_parameters()}
        if missing := sorted(whole - set(names)):
            raise _refusal(f"{', '.join(missing)} of {kind} is not random, but `{name}` is")
    for name, times in _calls(problem, names).items():
        if times != 1:
            raise _refusal(f"the layer of `{name}` is called {times} times, expected once")


def _calls(problem: Problem, names: list[str]) -> dict[str, int]:
    """How often the layers of these weights are called in a forward pass."""
    found, handles = dict.fromkeys(names, 0), []

    def counting(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            found[name] += 1

        return count

    for name in names:
        layer = problem.model.get_submodule(name.rpartition(".")[0])
        handles.append(layer.register_forward_hook(counting(name)))
    try:
        with torch.no_grad(), evaluating(problem.model):
            call(problem.model, rows(problem.data.example, slice(1)))
    finally:
        for each in handles:
            each.remove()
    return found


def _refusal(reason: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"Laplace(structure='kron'): {reason}, and laplace-torch has no Kronecker factors for it; "
        f"let only the last layer be random (where=bayesify.last_layer) or take structure='diag' "
        f"(or 'full', for few weights)."
    )
