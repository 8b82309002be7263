"""The fields of options, described once and read from text, from TOML and from Python's values.

`fields_of` says of a dataclass which options it has, of which type, with what help, bounds and
default; `Field.read` reads a value of one, whether it is text (`"20"`, from a command line) or
typed (`20`, from TOML). `none` is None, a method's name is that method with its defaults, and
`first_layer` or `*.mlp.*` choose weights.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, is_dataclass
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal

from bayesify.core.errors import OptionError
from bayesify.core.options import METHODS, UNBOUNDED, Bounds, table
from bayesify.core.types import Where

TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Kind:
    """How values of a type are read.

    Args:
        words: What is expected, in a sentence.
        metavar: The same in `--help`.
        read: From text or a typed value; raises ValueError or TypeError where it is none.
    """

    words: str
    metavar: str
    read: Callable[[Any], Any]


@dataclass(frozen=True)
class Field:
    """One option.

    Args:
        name: Its name.
        hint: Its type, or a union of types; the first that fits a value is taken.
        default: Its value where none is given, MISSING where one must be.
        help: One line for people.
        bounds: The values that it may take.
    """

    name: str
    hint: Any
    default: Any
    help: str = ""
    bounds: Bounds = UNBOUNDED

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """How each type of the union is read."""
        whole = self.hint == Where or typing.get_origin(self.hint) in (tuple, Literal)
        return tuple(_kind(each) for each in (() if whole else typing.get_args(self.hint))) or (
            _kind(self.hint),
        )

    @property
    def several(self) -> bool:
        """Whether its values are lists."""
        return typing.get_origin(self.hint) is tuple

    def read(self, value: Any, expected: str) -> Any:
        """The option's value, from text or a typed value.

        Args:
            value: What was given.
            expected: The beginning of an error message, as in "map: expected epochs to be".

        Raises:
            OptionError: it is of another type, or out of bounds.
        """
        kinds = self.kinds
        if value is None or (_NONE in kinds and str(value).lower() == "none"):
            return None
        for kind in kinds:
            try:
                found = kind.read(value)
            except OptionError:
                raise  # it knows more than we do
            except (ValueError, TypeError):
                continue
            if self.bounds.admit(found):
                return found
            raise OptionError(f"{expected} {self.bounds.sentence()}, got {value!r}.")
        described = " or ".join(kind.words for kind in kinds)
        raise OptionError(f"{expected} {described}, got {value!r}.")


def fields_of(kind: Any) -> dict[str, Field]:
    """The options of a dataclass by name; of another class, the arguments of its constructor.

    Example:
        >>> from bayesify.methods import METHODS
        >>> fields_of(METHODS["map"])["epochs"].help
        'passes over the data'
    """
    if not is_dataclass(kind):
        hints = typing.get_type_hints(kind.__init__)
        named = [e for e in inspect.signature(kind).parameters.values() if e.kind not in STARRED]
        return {each.name: Field(each.name, hints[each.name], MISSING) for each in named}
    hints = typing.get_type_hints(kind)
    return {
        each.name: Field(
            each.name,
            hints[each.name],
            each.default if each.default_factory is MISSING else each.default_factory(),
            each.metadata.get("help", ""),
            each.metadata.get("bounds", UNBOUNDED),
        )
        for each in dataclasses.fields(kind)
    }


def field_of(kind: Any, option: str, owner: str | None = None) -> Field:
    """One option of a class, called `owner` in an error message.

    Raises:
        OptionError: it has no such option; the message knows similar ones.
    """
    known = fields_of(kind)
    if option not in known:
        raise OptionError(
            f"{owner or name_of(kind)} has no option {option!r}: it has "
            f"{', '.join(known) or 'none'}{near(option, known)}"
        )
    return known[option]


def name_of(kind: type) -> str:
    """What users call a class: a method by its name in the table, others by their own."""
    return next((name for name, each in table(METHODS).items() if each is kind), kind.__name__)


def method_of(name: str) -> Any:
    """The class of a method.

    Raises:
        OptionError: there is no such method; the message knows similar names.
    """
    methods = table(METHODS)
    if name not in methods:
        raise OptionError(
            f"unknown method {name!r}: expected one of {', '.join(methods)}{near(name, methods)}"
        )
    return methods[name]


def near(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: a similar one, if there is any.

    >>> near("epoch", ["epochs", "lr"]), near("qqq", ["epochs"])
    ("; did you mean 'epochs'?", '.')
    """
    found = get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def shown(value: Any) -> str:
    """A value as a user would type it.

    >>> from bayesify.weights.select import first_layer
    >>> shown(first_layer), shown(None), shown((0, 1))
    ('first_layer', 'none', '0,1')
    """
    if is_dataclass(value):  # a method, or a selector: FirstLayer is first_layer
        name = name_of(type(value))
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(shown, value)) if isinstance(value, tuple) else str(value)


def _kind(hint: Any) -> Kind:
    if hint in _KINDS:
        return _KINDS[hint]
    inside = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return Kind(" or ".join(inside), "|".join(inside), lambda value: _word(value, inside))
    if typing.get_origin(hint) is tuple:
        inner = _kind(inside[0])
        words = f"{inner.words.removeprefix('a ')}s with commas between them"
        return Kind(words, "VALUES", lambda value: _several(value, inner))
    if isinstance(hint, type) and any(issubclass(each, hint) for each in table(METHODS).values()):
        return Kind(
            "a method's name",
            "METHOD",
            lambda value: value if isinstance(value, hint) else method_of(_text(value))(),
        )
    return Kind("what Python alone can give", "PYTHON", _word)


def _bool(value: Any) -> bool:
    return value if isinstance(value, bool) else TRUTHS[_word(str(value), TRUTHS)]


def _int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, str) and "/" in value:  # 8/255, as the field writes its radii
        over, under = value.split("/")
        return float(over) / int(under)
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _word(value: Any, words: Iterable[str] = ()) -> str:
    if str(value).lower() not in words:
        raise ValueError
    return str(value).lower()


def _several(value: Any, inner: Kind) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [each.strip() for each in value.split(",") if each.strip()]
    return tuple(
        inner.read(each) for each in (value if isinstance(value, list | tuple) else [value])
    )


def _where(value: Any) -> Where:
    return table("bayesify.weights.select:where_from_text")(_text(value))


_NONE = Kind("none", "none", _word)

_KINDS: dict[Any, Kind] = {
    bool: Kind("true or false", "true|false", _bool),
    int: Kind("a whole number", "N", _int),
    float: Kind("a number", "X", _float),
    str: Kind("text", "TEXT", _text),
    Where: Kind(
        "first_layer, last_layer, all_weights or patterns such as '*.mlp.*'", "WEIGHTS", _where
    ),
    NoneType: _NONE,
}
