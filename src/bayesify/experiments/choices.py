"""Options of methods, of likelihoods and of other dataclasses, from text and tables.

Options of a nested method have dotted names: `pretrain.epochs`. Values are read by the fields of
the dataclasses (`core/fields.py`); lists are grids. `likelihood.scale = 0.5` in a `[[method]]`
table is an argument of the likelihood's constructor.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bayesify.core.errors import OptionError
from bayesify.core.fields import field_of, method_of, name_of
from bayesify.likelihoods import LIKELIHOOD_OF_TASK, LIKELIHOODS, Likelihood
from bayesify.training.method import AUTO, Method

Options = Mapping[str, Any]
"""Values by dotted name, or nested."""


def make(name: str, options: Options) -> Method:
    """The method `name` with these options and the defaults of all others.

    Raises:
        OptionError: the method or an option is unknown, or a value is impossible.

    Example:
        >>> make("stf", {"epochs": "3", "pretrain.epochs": 2}).pretrain.epochs
        2
    """
    return with_options(method_of(name)(), flat(options))


def grid(name: str, options: Options) -> list[tuple[str, Method]]:
    """Every combination of the options that are lists, each with what tells it from the others.

    Example:
        >>> [varied for varied, _ in grid("map", {"epochs": [1, 2], "lr": 0.1})]
        ['epochs=1', 'epochs=2']
    """
    kind, single = method_of(name), flat(options)
    lists = {key: value for key, value in single.items() if _is_grid(kind, key, value)}
    return [(varied, make(name, single | chosen)) for varied, chosen in combinations(name, lists)]


def combinations(name: str, lists: Mapping[str, list[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """One value of every list, in all ways, each with what tells it from the others.

    Args:
        name: Whose options they are, for an error message.
        lists: The values that each option is to take.

    Raises:
        OptionError: a list is empty.

    Example:
        >>> combinations("map", {"epochs": [1, 2], "lr": [0.1]})
        [('epochs=1', {'epochs': 1, 'lr': 0.1}), ('epochs=2', {'epochs': 2, 'lr': 0.1})]
    """
    for key, values in lists.items():
        if not values:
            raise OptionError(f"{name}: option {key} is an empty list; give at least one value.")
    made = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    many = [key for key, values in lists.items() if len(values) > 1]
    return [(" ".join(f"{key}={chosen[key]}" for key in many), chosen) for chosen in made]


def flat(options: Options, prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names; the name of a nested method stands under its own dots.

    >>> flat({"pretrain": {"name": "map", "epochs": 3}, "lr": 0.1})
    {'pretrain': 'map', 'pretrain.epochs': 3, 'lr': 0.1}
    """
    return dict(_flat(options, prefix))


def _flat(options: Options, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if not isinstance(value, Mapping):
            yield prefix + key, value
            continue
        if "name" in value:
            yield prefix + key, value["name"]
        rest = {inner: each for inner, each in value.items() if inner != "name"}
        yield from _flat(rest, f"{prefix}{key}.")


def with_options(held: Any, options: Options) -> Any:
    """A dataclass of options with some replaced, and then those of the methods inside it.

    Args:
        held: A method, or another dataclass of options, such as `Attacks`.
        options: By dotted name, as text or typed values.

    Raises:
        OptionError: an option is unknown, or a value is impossible.
    """
    kind, owner = type(held), name_of(type(held))
    changed: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        name, dot, rest = key.partition(".")
        field = field_of(kind, name)
        if dot:
            inside.setdefault(name, {})[rest] = value
        else:
            changed[name] = field.read(value, f"{owner}: expected {name} to be")
    for name, nested in inside.items():
        inner = changed.get(name, getattr(held, name))
        if inner == AUTO and name not in changed:
            inner = held.before()  # its options are asked for, so it is
        if not isinstance(inner, Method):
            what = {None: "none", AUTO: AUTO}.get(inner, "no method")
            raise OptionError(
                f"{owner}: {name}.{next(iter(nested))} is given, but {name} is {what}; leave it "
                f"out, or name a method."
            )
        changed[name] = with_options(inner, nested)
    return replace(held, **changed)


def _is_grid(kind: type[Method], key: str, value: Any) -> bool:
    if not isinstance(value, list) or "." in key or not field_of(kind, key).several:
        return isinstance(value, list)
    return any(isinstance(each, list) for each in value)


def likelihood_of(task: str, options: Options) -> Likelihood:
    """A new likelihood for `task`.

    Args:
        task: "classification", "multilabel" or "regression".
        options: Arguments of its constructor, as `likelihood_options` returns them.

    Example:
        >>> likelihood_of("regression", {"scale": 0.5}).options()["scale"]
        0.5
    """
    return LIKELIHOODS[LIKELIHOOD_OF_TASK[task]](**options)


def likelihood_options(task: str, options: Options) -> dict[str, Any]:
    """The options of the likelihood of `task`, from text or typed values.

    Raises:
        OptionError: it has no such option, or refuses the value.

    Example:
        >>> likelihood_options("regression", {"scale": "0.5"})
        {'scale': 0.5}
    """
    name = f"{LIKELIHOOD_OF_TASK[task]} likelihood"
    kind = LIKELIHOODS[LIKELIHOOD_OF_TASK[task]]
    values = {
        key: field_of(kind, key, f"the {name}").read(value, f"{name}: expected {key} to be")
        for key, value in options.items()
    }
    likelihood_of(task, values)  # raises what the likelihood refuses
    return values
