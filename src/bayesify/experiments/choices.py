"""Options of methods from text and tables, checked against the fields of their dataclasses.

A value may be text (`"20"`, from a command line) or typed (`20`, from TOML). Options of a nested
method have dotted names: `pretrain.epochs`. `none` is None, a method's name is that method with its
defaults, and `first_layer` or `*.mlp.*` choose weights.
"""

import itertools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal

from bayesify.core.errors import OptionError
from bayesify.core.types import Where
from bayesify.methods import METHODS
from bayesify.training.method import AUTO, Method
from bayesify.weights.select import where_from_text

Options = Mapping[str, Any]
"""Values by dotted name, or nested."""

TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def make(name: str, options: Options) -> Method:
    """The method `name` with these options and the defaults of all others.

    Raises:
        OptionError: the method or an option is unknown, or a value is impossible.

    Example:
        >>> make("stf", {"epochs": "3", "pretrain.epochs": 2}).pretrain.epochs
        2
    """
    return with_options(kind_of(name)(), flat(options))


def grid(name: str, options: Options) -> list[tuple[str, Method]]:
    """Every combination of the options that are lists, each with what tells it from the others.

    Example:
        >>> [varied for varied, _ in grid("map", {"epochs": [1, 2], "lr": 0.1})]
        ['epochs=1', 'epochs=2']
    """
    single = flat(options)
    kind = kind_of(name)
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
    made = []
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        varied = [f"{key}={chosen[key]}" for key in lists if len(lists[key]) > 1]
        made.append((" ".join(varied), chosen))
    return made


def kind_of(name: str) -> type[Method]:
    """The method's class.

    Raises:
        OptionError: there is no such method; the message knows similar names.
    """
    if name not in METHODS:
        raise OptionError(
            f"unknown method {name!r}: expected one of {', '.join(METHODS)}{near(name, METHODS)}"
        )
    return METHODS[name]


def near(word: str, known: typing.Iterable[str]) -> str:
    """The end of a sentence about an unknown word: a similar one, if there is any.

    >>> near("epoch", ["epochs", "lr"]), near("qqq", ["epochs"])
    ("; did you mean 'epochs'?", '.')
    """
    found = get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def flat(options: Options, prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names; the name of a nested method stands under its own dots.

    >>> flat({"pretrain": {"name": "map", "epochs": 3}, "lr": 0.1})
    {'pretrain': 'map', 'pretrain.epochs': 3, 'lr': 0.1}
    """
    return dict(_flat(options, prefix))


def _flat(options: Options, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        dotted = prefix + key
        if not isinstance(value, Mapping):
            yield dotted, value
            continue
        if "name" in value:
            yield dotted, value["name"]
        rest = {inner: each for inner, each in value.items() if inner != "name"}
        yield from _flat(rest, dotted + ".")


def with_options(method: Any, options: dict[str, Any]) -> Any:
    """A dataclass of options with some replaced, and then those of the methods inside it.

    Args:
        method: A method, or another dataclass of options, such as `Attacks`.
        options: By dotted name, as text or typed values.

    Raises:
        OptionError: an option is unknown, or a value is impossible.
    """
    own = {key: value for key, value in options.items() if "." not in key}
    changed = {key: read_value(type(method), key, value) for key, value in own.items()}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        if key not in own:
            outer, _, rest = key.partition(".")
            inner.setdefault(outer, {})[rest] = value
    for key, nested in inner.items():
        hint_of(type(method), key)
        held = changed.get(key, getattr(method, key))
        if held == AUTO and key not in changed:
            held = method.before()  # its options are asked for, so it is
        if not isinstance(held, Method):
            what = {None: "none", AUTO: AUTO}.get(held, "no method")
            raise OptionError(
                f"{_name(type(method))}: {key}.{next(iter(nested))} is given, but {key} is {what}; "
                f"leave it out, or name a method."
            )
        changed[key] = with_options(held, nested)
    return replace(method, **changed)


def hint_of(kind: type[Method], option: str) -> Any:
    """The type of an option.

    Raises:
        OptionError: the method has no such option; the message knows similar ones.
    """
    hints = options_of(kind)
    if option not in hints:
        raise OptionError(
            f"{_name(kind)} has no option {option!r}: it has {', '.join(hints)}"
            f"{near(option, hints)}"
        )
    return hints[option]


def options_of(kind: type[Method]) -> dict[str, Any]:
    """The types of all options of a method, by name."""
    hints = typing.get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(typing.cast(Any, kind))}


def read_value(kind: type[Method], option: str, value: Any) -> Any:
    """The value of one option, from text or a typed value.

    Raises:
        OptionError: it is of another type.
    """
    return read_as(hint_of(kind, option), f"{_name(kind)}: expected {option}", value)


def read_as(hint: Any, expected: str, value: Any) -> Any:
    """`value`, text or typed, as the type `hint`.

    Args:
        hint: A type, or a union of types; the first that fits is taken.
        expected: The beginning of an error message, as in "map: expected epochs".
        value: What was given.

    Raises:
        OptionError: it is of another type.
    """
    types = alternatives(hint)
    if value is None or (NoneType in types and str(value).lower() == "none"):
        return None
    for each in types:
        try:
            return _READERS.get(each, _read_other)(value, each)
        except OptionError:
            raise  # it knows more than we do
        except (ValueError, TypeError):
            continue
    described = " or ".join(_describe(each) for each in types)
    raise OptionError(f"{expected} to be {described}, got {value!r}.")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone.

    >>> alternatives(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    if hint == Where or typing.get_origin(hint) is tuple:
        return (hint,)
    return typing.get_args(hint) or (hint,)


def _is_grid(kind: type[Method], key: str, value: Any) -> bool:
    if not isinstance(value, list):
        return False
    if "." in key or typing.get_origin(hint_of(kind, key)) is not tuple:
        return True
    return any(isinstance(each, list) for each in value)


def _read_bool(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in TRUTHS:
        raise ValueError
    return TRUTHS[str(value).lower()]


def _read_int(value: Any, _: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _read_float(value: Any, _: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, str) and "/" in value:  # 8/255, as the field writes its radii
        over, under = value.split("/")
        return float(over) / int(under)
    return float(value)


def _read_text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_where(value: Any, _: Any) -> Where:
    return where_from_text(_read_text(value, str))


def _read_method(value: Any, _: Any) -> Method:
    return value if isinstance(value, Method) else kind_of(_read_text(value, str))()


def _read_auto(value: Any, _: Any) -> str:
    if str(value).lower() != AUTO:
        raise ValueError
    return AUTO


def _read_nothing(value: Any, _: Any) -> None:
    if value is not None:
        raise ValueError


def _read_other(value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is not tuple:
        raise TypeError
    inner = typing.get_args(hint)[0]
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, list | tuple) else [parts]
    return tuple(_READERS[inner](each, inner) for each in parts)


_READERS: dict[Any, Any] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_text,
    Where: _read_where,
    Literal[AUTO]: _read_auto,
    Method: _read_method,
    NoneType: _read_nothing,
}


def _describe(hint: Any) -> str:
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        Where: "first_layer, last_layer, all_weights or patterns such as '*.mlp.*'",
        Literal[AUTO]: AUTO,
        Method: "a method's name",
        NoneType: "none",
    }
    return words.get(hint, "values with commas between them")


def _name(kind: type[Method]) -> str:
    named = [name for name, each in METHODS.items() if each is kind]
    return named[0] if named else kind.__name__
