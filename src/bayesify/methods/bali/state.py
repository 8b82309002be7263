"""A layerwise run as named tensors, and back: what a checkpoint of a stream holds."""

from dataclasses import fields
from typing import Protocol

import torch
from torch import Tensor, nn

from bayesify.core.types import Named
from bayesify.likelihoods import Likelihood
from bayesify.methods.bali.layer import LearntLayer
from bayesify.numerics.layer_regression import LayerRegression
from bayesify.weights.named import copied
from bayesify.weights.store import encode, part


class State(Protocol):
    """The parts of a run that change as it learns."""

    model: nn.Module
    likelihood: Likelihood
    layers: list[LearntLayer]
    points: dict[str, nn.Parameter]
    buffers: Named
    generator: torch.Generator
    adam: torch.optim.Adam | None
    steps: int
    failures: Tensor


def state_of(run: State) -> Named:
    """All of them, each contiguous, as safetensors wants it."""
    state: Named = {
        "steps": torch.tensor(run.steps),
        "failures": run.failures,
        "generator": run.generator.get_state(),
    }
    for layer in run.layers:
        for key, each in vars(layer.regression).items():
            state[f"{key}.{encode(layer.name)}"] = each
    kept: dict[str, Named] = {"points": dict(run.points), "buffers": run.buffers}
    kept["likelihood"] = run.likelihood.state_dict()
    for number, moments in (run.adam.state_dict()["state"] if run.adam else {}).items():
        kept[f"adam{number}"] = moments
    for field, named in kept.items():
        state |= {f"{field}.{encode(name)}": each for name, each in named.items()}
    return {name: each.detach().clone().contiguous() for name, each in state.items()}


def restore_(run: State, state: Named) -> None:
    """Put what `state_of` gave into a run on the same network, wherever that computes."""
    device = next(run.model.parameters()).device
    run.steps, run.failures = int(state["steps"]), state["failures"].clone()
    run.generator.set_state(state["generator"])
    for layer in run.layers:
        held = {key.name: part(state, key.name)[layer.name] for key in fields(LayerRegression)}
        layer.regression = LayerRegression(
            **{key: each.to(device, copy=True) for key, each in held.items()}
        )
    buffers = part(state, "buffers")
    run.buffers = {name: buffers[name].to(device, copy=True) for name in run.buffers}
    run.likelihood.load_state_dict(part(state, "likelihood"))
    with torch.no_grad():
        for name, each in part(state, "points").items():
            run.points[name].copy_(each)
    if run.adam is not None:
        whole = run.adam.state_dict()
        moments = {number: part(state, f"adam{number}") for number in range(len(run.points))}
        whole["state"] = {number: copied(each) for number, each in moments.items() if each}
        run.adam.load_state_dict(whole)
