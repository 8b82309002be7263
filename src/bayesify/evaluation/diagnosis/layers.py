"""The layers of a network: which there are, in what order they run, and which inputs of them vary.

A layer is a module with the weights that it owns itself, the first owner for a tied weight.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.streams import stream
from bayesify.core.types import Inputs, Named
from bayesify.methods.members.fresh import fresh_weights
from bayesify.tracing.trace import call, execution_order
from bayesify.weights.named import weights_of
from bayesify.weights.select import Matching, matching

CONSTANT = 1e-6
"""A range of inputs this small, in units of the largest of them, is rounding."""


def layers_of(model: nn.Module, example: Inputs | None = None) -> dict[str, list[str]]:
    """Module name -> names of its own weights, in the order in which a forward pass reads them.

    Example:
        >>> layers_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)))
        {'0': ['0.weight', '0.bias'], '2': ['2.weight']}
    """
    layers: dict[str, list[str]] = {
        name.rpartition(".")[0]: [] for name in execution_order(model, example)
    }
    for name in weights_of(model):
        if (owner := name.rpartition(".")[0]) in layers:
            layers[owner].append(name)
    return layers


def redrawable_layers(
    model: nn.Module, wanted: Sequence[str] | None = None, example: Inputs | None = None
) -> dict[str, list[str]]:
    """Those of `layers_of` that can draw their weights anew.

    Args:
        model: The network.
        wanted: Names of modules; None for all that own a matrix (kernel, table): so no norms.
        example: A small batch; see `execution_order`.

    Raises:
        OptionError: a name is unknown, or there are none.
        UnsupportedModelError: a layer that is wanted cannot be drawn anew, or none at all can.
    """
    known = layers_of(model, example)
    if wanted is None:
        weights = weights_of(model)
        large = {n: own for n, own in known.items() if any(weights[w].ndim >= 2 for w in own)}
        chosen = {name: own for name, own in large.items() if _can_draw(model, own)}
        if not chosen:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no layer that owns a matrix and can draw it anew; "
                f"expected one with `reset_parameters()`. Give the class one."
            )
        return chosen
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted:
        raise OptionError(f"layers: expected one name at least, {_names_like('', known)}.")
    for layer in wanted:
        if layer not in known:
            raise OptionError(
                f"layers: {layer!r} is no module whose own weights a forward pass reads; expected "
                f"{_names_like(layer, known)}."
            )
    chosen = {name: own for name, own in known.items() if name in wanted}
    for own in chosen.values():
        _draw(model, own)  # raises, with the reason
    return chosen


def selector_of(model: nn.Module, layer: str, names: Sequence[str]) -> Matching:
    """What selects the weights `names` of a layer and no others: by a pattern, if there is one.

    Example:
        >>> selector_of(nn.Sequential(nn.Linear(4, 3)), "0", ["0.weight", "0.bias"])
        Matching(patterns=('0.*',))
    """
    every = matching(f"{layer}.*" if layer else "*")
    return every if every(model) == list(names) else matching(*names)


@torch.no_grad()
def varying_inputs(
    model: nn.Module, layers: Mapping[str, Sequence[str]], batches: Iterable[Inputs]
) -> dict[str, Bool[Tensor, " inputs"]]:
    """Of each plain `nn.Linear` among `layers`: which inputs are not the same for all examples.

    Weights of the others are free, but for what they add to the bias: the data do not determine
    them. Layers of other kinds are left out, as are those that share their weight with another.

    Args:
        model: The network, in eval mode.
        layers: Module name -> names of its weights.
        batches: All inputs, on the model's device.
    """
    lowest: Named = {}
    highest: Named = {}

    def see(layer: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].flatten(0, -2)
        low, high = rows.amin(0), rows.amax(0)
        lowest[layer] = torch.minimum(low, lowest.get(layer, low))
        highest[layer] = torch.maximum(high, highest.get(layer, high))

    uses = [id(each) for _, each in model.named_parameters(remove_duplicate=False)]
    modules = {layer: model.get_submodule(layer) for layer in layers}
    handles = [
        module.register_forward_pre_hook(partial(see, layer))
        for layer, module in modules.items()
        if type(module) is nn.Linear and uses.count(id(module.weight)) == 1
    ]
    try:
        for inputs in batches if handles else ():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    largest = {n: torch.maximum(lowest[n].abs(), highest[n].abs()) for n in lowest}
    return {n: (highest[n] - lowest[n] > CONSTANT * largest[n]).cpu() for n in lowest}


def _can_draw(model: nn.Module, names: Sequence[str]) -> bool:
    try:
        _draw(model, names)
    except UnsupportedModelError:
        return False
    return True


def _draw(model: nn.Module, names: Sequence[str]) -> None:
    fresh_weights(model, names, 1, stream(0, "check"))


def _names_like(layer: str, known: Mapping[str, object]) -> str:
    near = get_close_matches(layer, known, n=3, cutoff=0.3) or list(known)[:3]
    return f"names like {', '.join(map(repr, near))}"
