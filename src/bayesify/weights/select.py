"""Which weights are random: small frozen selectors, called as `where(model, example) -> names`.

They are dataclasses, so that options which hold one can be saved as JSON. "First" and "last" mean
order of execution (`weights/trace.py`), not of registration. A layer is the module that owns the
weight, so all its weights (kernel and bias, the parts of a parametrized kernel) come with it.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from bayesify.errors import OptionError, UnsupportedModelError
from bayesify.options import register
from bayesify.types import Inputs, Where
from bayesify.weights.named import weights_of
from bayesify.weights.trace import execution_order

PARAMETRIZATIONS = "parametrizations"
"""Where `torch.nn.utils.parametrize` keeps the parts of a layer's weight, inside the layer."""


@register
@dataclass(frozen=True)
class FirstLayer:
    """The weights of the layer that runs first; it must have a matrix weight (linear, conv, ...).

    Example:
        >>> first_layer(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        ['1.weight', '1.bias']
    """

    def __call__(self, model: nn.Module, example: Inputs | None = None) -> list[str]:
        """Names of the weights of the first layer."""
        return _layer_of(_read(model, example)[0], model, "first_layer")


@register
@dataclass(frozen=True)
class LastLayer:
    """The weights of the layer that runs last; it must have a matrix weight.

    Example:
        >>> last_layer(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        ['2.weight', '2.bias']
    """

    def __call__(self, model: nn.Module, example: Inputs | None = None) -> list[str]:
        """Names of the weights of the last layer."""
        return _layer_of(_read(model, example)[-1], model, "last_layer")


@register
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


@register
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


@register
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


def _read(model: nn.Module, example: Inputs | None) -> list[str]:
    weights_of(model)  # raises when there are none
    order = execution_order(model, example)
    if not order:
        raise UnsupportedModelError(
            f"a forward pass of {type(model).__name__} reads none of its weights; expected a model "
            f"that computes with its parameters."
        )
    return order


def _layer_of(name: str, model: nn.Module, selector: str) -> list[str]:
    owner = _owner(name)
    layer = model.get_submodule(owner)
    weights = weights_of(model)
    chosen = [each for each in weights if _owner(each) == owner]
    if not any(weights[each].ndim >= 2 for each in chosen):
        end = selector.removesuffix("_layer")
        raise UnsupportedModelError(
            f"`{selector}` found no weight to make Bayesian: the {end} module with parameters is "
            f"`{owner or type(model).__name__}` ({type(layer).__name__}), which has no matrix "
            f"weight. Pass `where=matching('...')` with the name of the weight you mean."
        )
    return chosen


def _owner(name: str) -> str:
    """The module that a weight belongs to; for a part of a parametrized weight, its layer."""
    path = name.split(".")
    return ".".join(path[: path.index(PARAMETRIZATIONS)] if PARAMETRIZATIONS in path else path[:-1])
