"""Options are fields of frozen dataclasses: declared once, with help, bounds and a way to JSON.

A field made by `option` carries its help text and its bounds; `check_options`, called in
`__post_init__`, enforces the bounds, and `core/fields.py` reads the same fields from text and TOML.
`to_json` and `from_json` write and read any nesting of the library's methods and selectors, which
stand in literal tables, and of classes of a user's own, which `register` lists.
"""

import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from bayesify.core.errors import OptionError

T = TypeVar("T", bound=type)
V = TypeVar("V")

_OWN: dict[str, type] = {}
"""Kinds that users registered. None has a name of ours."""

METHODS, SELECTORS = "bayesify.methods:METHODS", "bayesify.weights.select:SELECTORS"
"""The tables of our kinds: class by name. They stand in rooms above, and are read when asked."""

NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False"}
"""Types of fields whose values are checked, in words."""


@dataclass(frozen=True)
class ByTask(Generic[V]):
    """What an option that was left at None stands for: it depends on what the outputs mean.

    Args:
        regression: For numbers.
        classes: For classes, and for labels that are on or off.

    Example:
        >>> ByTask(regression=1.0, classes=0.1).of("multilabel")
        0.1
    """

    regression: V
    classes: V

    def of(self, task: str) -> V:
        """For a likelihood's task."""
        return self.regression if task == "regression" else self.classes


@dataclass(frozen=True)
class Bounds:
    """The values a numeric option may take; `None` means unbounded on that side."""

    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    choices: tuple[Any, ...] | None = None

    def describe(self) -> str:
        """In words, for an error message.

        >>> Bounds(above=0, at_most=1).describe()
        'above 0 and at most 1'
        """
        if self.choices is not None:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        words = [("above", self.above), ("at least", self.at_least), ("at most", self.at_most)]
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)

    def sentence(self) -> str:
        """What is expected.

        >>> Bounds(at_least=1).sentence()
        'a value at least 1'
        """
        return ("" if self.choices else "a value ") + self.describe()

    def admit(self, value: Any) -> bool:
        """Whether `value` lies within; `None` and values that are no number always do."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )


UNBOUNDED = Bounds()
"""Any value."""


def option(
    default: Any = MISSING,
    *,
    help: str,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field with a help text and bounds.

    Args:
        default: Value used when the user gives none.
        help: One line for `--help` and for readers.
        above: Strict lower bound.
        at_least: Lower bound.
        at_most: Upper bound.
        choices: The only values allowed.
    """
    bounds = Bounds(above, at_least, at_most, choices)
    return field(default=default, metadata={"help": help, "bounds": bounds})


def check_options(options: Any) -> None:
    """Raise `OptionError` when a field of the dataclass `options` is no number or out of bounds."""
    for each in fields(options):
        bounds = each.metadata.get("bounds", UNBOUNDED)
        value = getattr(options, each.name)
        wrong = (kind := NUMBERS.get(each.type)) and not _is_number(value, each.type)
        if wrong or not bounds.admit(value):
            expected = f"{kind}, got {type(value).__name__}" if wrong else bounds.sentence()
            raise OptionError(
                f"{type(options).__name__}({each.name}={value!r}): expected {expected}; "
                f"{each.metadata.get('help', 'see its documentation')}."
            )


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and not (
        isinstance(value, bool) and kind is not bool
    )


def table(place: str) -> Any:
    """What "module:NAME" holds, imported when it is asked for: `table(METHODS)["map"]` is MAP."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _ours() -> dict[str, type]:
    """The library's kinds by the names of their classes, as JSON has them."""
    return {kind.__name__: kind for each in (METHODS, SELECTORS) for kind in table(each).values()}


def _check_name(kind: type) -> None:
    """Raise `OptionError` where a class that is not ours has the name of one that is."""
    if (ours := _ours().get(kind.__name__, kind)) is not kind:
        raise OptionError(
            f"{kind.__module__}.{kind.__qualname__}: expected a class of another name, got that of "
            f"{ours.__module__}.{ours.__name__}, which saved options would be read as; rename it."
        )


def register(kind: T) -> T:
    """Class decorator: `from_json` may build this dataclass of your own from its name and fields.

    Raises:
        OptionError: a method or a selector of the library has this name.
    """
    _check_name(kind)
    _OWN[kind.__name__] = kind
    return kind


def to_json(value: Any) -> Any:
    """The same value in JSON's terms; dataclasses become `{"kind": class name, field: ...}`.

    >>> from bayesify.weights.select import matching
    >>> to_json(matching("*.mlp.*"))
    {'kind': 'Matching', 'patterns': ['*.mlp.*']}
    """
    if is_dataclass(value) and not isinstance(value, type):
        _check_name(type(value))
        named = {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
        return {"kind": type(value).__name__, **named}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise OptionError(
        f"cannot write {value!r} as JSON: expected a number, a string, or one of bayesify's option "
        f"classes ({', '.join(sorted(_ours() | _OWN))}); give a selector such as "
        f"matching('*.weight'), or a frozen dataclass of your own with "
        f"@bayesify.core.options.register and __call__, instead of a function of your own where "
        f"options must be saved."
    )


def from_json(value: Any) -> Any:
    """The inverse of `to_json`; lists become tuples.

    Raises:
        OptionError: a kind or an option of it is unknown, or a value is impossible.
    """
    if isinstance(value, list):
        return tuple(from_json(each) for each in value)
    if not isinstance(value, dict):
        return value
    kinds = _OWN | _ours()
    kind = kinds.get(value.get("kind", ""))
    if kind is None:
        raise OptionError(
            f"unknown kind of options {value.get('kind')!r}; known: {', '.join(sorted(kinds))}."
        )
    named = {name: from_json(each) for name, each in value.items() if name != "kind"}
    known = {each.name for each in fields(kind)}
    if foreign := set(named) - known:
        raise OptionError(
            f"{kind.__name__} has no option {sorted(foreign)}; it has {sorted(known)}."
        )
    return kind(**named)
