"""Checks the shapes that bayesify's signatures promise, in every test, through jaxtyping's flag.

`--jaxtyping-packages=bayesify,shapecheck.shapes` (pyproject.toml) puts this on every function. It
leaves other annotations to the static type checker: beartype cannot read some of them (`Self`), and
tests break others on purpose, to see the message that a user sees.
"""

import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import beartype
from jaxtyping import AbstractArray

F = TypeVar("F", bound=Callable[..., Any])


def shapes(function: F) -> F:
    """The function with its jaxtyping annotations enforced."""
    promised = {name: hint for name, hint in _hints(function).items() if _is_shape(hint)}
    if not promised:
        return function
    twin = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__, twin.__annotations__ = function.__kwdefaults__, promised
    twin.__module__, twin.__qualname__ = function.__module__, function.__qualname__
    return beartype(twin)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return getattr(function, "__annotations__", {})


def _is_shape(hint: Any) -> bool:
    parts = typing.get_args(hint) or (hint,)
    return any(isinstance(each, type) and issubclass(each, AbstractArray) for each in parts)
