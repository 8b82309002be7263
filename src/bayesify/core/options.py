"""Options are fields of frozen dataclasses: declared once, with help, bounds and a way to JSON.

A field made by `option` carries its help text and its bounds; `check_options`, called in
`__post_init__`, enforces the bounds, and the command line makes its flags from the same fields.
`to_json` and `from_json` write and read any nesting of the dataclasses listed by `register`.
"""

import dataclasses
import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from bayesify.core.errors import OptionError

T = TypeVar("T", bound=type)
V = TypeVar("V")

_KINDS: dict[str, type] = {}

HOME = "bayesify.methods"
"""Importing it registers every kind; `import bayesify` alone loads nothing."""

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
        bounds = each.metadata.get("bounds", Bounds())
        value = getattr(options, each.name)
        if (kind := NUMBERS.get(each.type)) and not _is_number(value, each.type):
            raise OptionError(
                f"{type(options).__name__}({each.name}={value!r}): expected {kind}, got "
                f"{type(value).__name__}; {each.metadata.get('help', 'see its documentation')}."
            )
        if not bounds.admit(value):
            raise OptionError(
                f"{type(options).__name__}({each.name}={value!r}): expected a value "
                f"{bounds.describe()}; {each.metadata.get('help', 'see its documentation')}."
            )


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and not (
        isinstance(value, bool) and kind is not bool
    )


def register(kind: T) -> T:
    """Class decorator: `from_json` may build this dataclass from its name and fields."""
    _KINDS[kind.__name__] = kind
    return kind


def to_json(value: Any) -> Any:
    """The same value in JSON's terms; dataclasses become `{"kind": class name, field: ...}`.

    >>> from bayesify.weights.select import matching
    >>> to_json(matching("*.mlp.*"))
    {'kind': 'Matching', 'patterns': ['*.mlp.*']}
    """
    if is_dataclass(value) and not isinstance(value, type):
        named = {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
        return {"kind": type(value).__name__, **named}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise OptionError(
        f"cannot write {value!r} as JSON: expected a number, a string, or one of bayesify's option "
        f"classes ({', '.join(sorted(_KINDS))}); give a selector such as matching('*.weight'), "
        f"or a frozen dataclass of your own with @bayesify.core.options.register and __call__, "
        f"instead of a function of your own where options must be saved."
    )


def from_json(value: Any) -> Any:
    """The inverse of `to_json`; lists become tuples."""
    if isinstance(value, list):
        return tuple(from_json(each) for each in value)
    if not isinstance(value, dict):
        return value
    if value.get("kind") not in _KINDS:
        import_module(HOME)
    kind = _KINDS.get(value.get("kind", ""))
    if kind is None:
        raise OptionError(
            f"unknown kind of options {value.get('kind')!r}; known: {', '.join(sorted(_KINDS))}."
        )
    named = {name: from_json(each) for name, each in value.items() if name != "kind"}
    known = {each.name for each in dataclasses.fields(kind)}
    if foreign := set(named) - known:
        raise OptionError(
            f"{kind.__name__} has no option {sorted(foreign)}; it has {sorted(known)}."
        )
    return kind(**named)
