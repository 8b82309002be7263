"""Which weights are random: small frozen selectors, called as `where(model, example) -> names`.

They are dataclasses, so that options which hold one can be saved as JSON. "First" and "last" mean
order of execution (`tracing/trace.py`), not of registration. A layer is the module that owns the
weight, so all its weights (kernel and bias, the parts of a parametrized kernel) come with it. Of
parameters that a model holds beside its layers (class token, positions, a projection), only those
that one product reads are a layer, with the bias that is read next.

In a language model whose head is tied to its embedding the first and the last layer are both the
whole table (38.6 of GPT-2's 124 million weights); name the weights of a block instead, such as
`matching("transformer.h.11.mlp.*")`.
"""

import operator
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.types import Inputs, Named, Where
from bayesify.tracing.trace import reads
from bayesify.weights.named import weights_of

PARAMETRIZATIONS = "parametrizations"
"""Where `torch.nn.utils.parametrize` keeps the parts of a layer's weight, inside the layer."""

ELEMENTWISE = {
    *(torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__),
    *(torch.sub, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__rsub__, Tensor.__isub__),
    *(torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__),
    *(torch.div, Tensor.div, Tensor.div_, Tensor.__truediv__, Tensor.__itruediv__),
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.cat, torch.stack),
}
"""What adds, scales or joins weights: no layer, however many axes these have."""


@dataclass(frozen=True)
class FirstLayer:
    """The weights of the layer that runs first; it must have a matrix weight (linear, conv, ...).

    Example:
        >>> first_layer(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        ['1.weight', '1.bias']
    """

    def __call__(self, model: nn.Module, example: Inputs | None = None) -> list[str]:
        """Names of the weights of the first layer."""
        return _layer_at(0, model, example, "first_layer")


@dataclass(frozen=True)
class LastLayer:
    """The weights of the layer that runs last; it must have a matrix weight.

    Example:
        >>> last_layer(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        ['2.weight', '2.bias']
    """

    def __call__(self, model: nn.Module, example: Inputs | None = None) -> list[str]:
        """Names of the weights of the last layer."""
        return _layer_at(-1, model, example, "last_layer")


@dataclass(frozen=True)
class AllWeights:
    """Every weight of the model.

    Example:
        >>> len(all_weights(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))))
        4
    """

    def __call__(self, model: nn.Module, example: Inputs | None = None) -> list[str]:
        """Names of all weights."""
        return list(weights_of(model))


@dataclass(frozen=True)
class Matrices:
    """The weights of two axes or more: matrices, kernels, embeddings; no biases, no norms.

    Example:
        >>> matrices(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
        ['0.weight']
    """

    def __call__(self, model: nn.Module, example: Inputs | None = None) -> list[str]:
        """Names of the weights of two axes or more.

        Raises:
            UnsupportedModelError: there are none.
        """
        chosen = [name for name, each in weights_of(model).items() if each.ndim >= 2]
        if not chosen:
            raise UnsupportedModelError(
                f"`matrices` found no weight of two axes or more in {type(model).__name__}; pass "
                f"`where=matching('...')` with the names of the weights you mean."
            )
        return chosen


@dataclass(frozen=True)
class Matching:
    """The weights whose name matches one of the shell-style patterns. Use `matching(...)`."""

    patterns: tuple[str, ...]

    def __call__(self, model: nn.Module, example: Inputs | None = None) -> list[str]:
        """Names of the weights that match; a tied weight is found under each of its names.

        Raises:
            OptionError: when a pattern matches nothing.
        """
        first_name = {id(weight): name for name, weight in model.named_parameters()}
        aliases = [
            (alias, first_name[id(weight)])
            for alias, weight in model.named_parameters(remove_duplicate=False)
        ]
        chosen = set()
        for pattern in self.patterns:
            hits = {name for alias, name in aliases if fnmatchcase(alias, pattern)}
            if not hits:
                raise OptionError(self._no_hit(pattern, [alias for alias, _ in aliases]))
            chosen |= hits
        return [name for name in weights_of(model) if name in chosen]

    def _no_hit(self, pattern: str, names: list[str]) -> str:
        near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        return (
            f"matching({pattern!r}) found no weight among the model's {len(names)}; names look "
            f"like {', '.join(near)}. Shell-style wildcards are allowed."
        )


SELECTORS: dict[str, type] = {
    "first_layer": FirstLayer,
    "last_layer": LastLayer,
    "all_weights": AllWeights,
    "matrices": Matrices,
    "matching": Matching,
}
"""Those of the library; in JSON each goes by the name of its class."""

first_layer = FirstLayer()
last_layer = LastLayer()
all_weights = AllWeights()
matrices = Matrices()


def matching(*patterns: str) -> Matching:
    """Select weights by shell-style patterns on their names.

    Example:
        >>> matching("*.bias")(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
        ['0.bias', '1.bias']
    """
    return Matching(patterns)


def chosen(where: Where, model: nn.Module, example: Inputs | None = None) -> list[str]:
    """The names of the weights that `where` chooses, at least one.

    Raises:
        OptionError: `where` is the name of a selector and no selector, or it chooses nothing.

    Example:
        >>> chosen(matrices, nn.Linear(4, 3))
        ['weight']
    """
    if not callable(where):
        raise OptionError(
            f"where={where!r}: expected a selector such as bayesify.first_layer or "
            f"bayesify.matching('*.weight'), not its name."
        )
    names = where(model, example)
    if not names:
        raise OptionError(f"{where} chose no weight of {type(model).__name__}.")
    return names


def where_from_text(text: str) -> Where:
    """The selector that a command line names.

    Args:
        text: `first_layer`, `last_layer`, `all_weights`, `matrices`, or patterns with commas
            between them.

    Example:
        >>> where_from_text("*.mlp.*")
        Matching(patterns=('*.mlp.*',))
    """
    named: dict[str, Where] = {
        "first_layer": first_layer,
        "last_layer": last_layer,
        "all_weights": all_weights,
        "matrices": matrices,
    }
    return named[text] if text in named else matching(*text.split(","))


def _read(model: nn.Module, example: Inputs | None) -> list[tuple[tuple[str, ...], Any]]:
    """The weights of each operation that reads any, and the operation."""
    weights = weights_of(model)  # raises when there are none
    found = reads(model, example)
    if not found:
        raise UnsupportedModelError(
            f"a forward pass of {type(model).__name__} reads none of its weights; expected a model "
            f"that computes with its parameters."
        )
    scales = [names for names, _ in found if not any(weights[name].ndim for name in names)]
    return [each for each in found if each[0] not in scales] or found


def _layer_at(place: int, model: nn.Module, example: Inputs | None, selector: str) -> list[str]:
    """The weights of the layer that reads at `place`, 0 or -1, of the operations that read."""
    operations = _read(model, example)
    name = operations[place][0][place]
    owner, weights = _owner(name), weights_of(model)
    own = [each for each in weights if _owner(each) == owner]
    layer = model.get_submodule(owner)
    if _is_container(layer, model):
        own = _read_together(operations, place, own, weights)
    if not any(weights[each].ndim >= 2 for each in own):
        end = selector.removesuffix("_layer")
        raise UnsupportedModelError(
            f"`{selector}` found no weight to make Bayesian: the {end} module with parameters is "
            f"`{owner or type(model).__name__}` ({type(layer).__name__}), which has no matrix "
            f"weight there. Pass `where=matching('...')` with the name of the weight you mean."
        )
    return own


def _is_container(layer: nn.Module, model: nn.Module) -> bool:
    """Whether its own parameters need not be those of one layer: it is the model, or has layers."""
    inner = [each for name, each in layer.named_children() if name != PARAMETRIZATIONS]
    held = isinstance(layer, nn.ParameterList | nn.ParameterDict)
    return held or layer is model or any(True for each in inner for _ in each.parameters())


def _read_together(
    operations: list[tuple[tuple[str, ...], Any]], place: int, own: list[str], weights: Named
) -> list[str]:
    """Of `own`, what the product at `place` reads, and the vector (bias) that is read next."""
    number = place % len(operations)

    def is_vector(index: int) -> bool:
        names = operations[index][0] if 0 <= index < len(operations) else ()
        return bool(names) and all(name in own and weights[name].ndim == 1 for name in names)

    product = number - 1 if place and is_vector(number) else number
    names, func = operations[product]
    if func in ELEMENTWISE or not any(name in own for name in names):
        return []
    bias = operations[product + 1][0] if is_vector(product + 1) else ()
    return [name for name in own if name in names or name in bias]


def _owner(name: str) -> str:
    """The module that a weight belongs to; for a part of a parametrized weight, its layer."""
    path = name.split(".")
    return ".".join(path[: path.index(PARAMETRIZATIONS)] if PARAMETRIZATIONS in path else path[:-1])
