"""The likelihood of a row: that of the task, with options of the row's own.

`likelihood.scale = 0.5` in a `[[method]]` table is an argument of the likelihood's constructor.
"""

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from bayesify.core.errors import OptionError
from bayesify.experiments.choices import near, read_as
from bayesify.likelihoods import LIKELIHOOD_OF_TASK, LIKELIHOODS, Likelihood

STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def likelihood_of(task: str, options: Mapping[str, Any]) -> Likelihood:
    """A new likelihood for `task`.

    Args:
        task: "classification", "multilabel" or "regression".
        options: Arguments of its constructor, as `typed` returns them.

    Example:
        >>> likelihood_of("regression", {"scale": 0.5}).options()["scale"]
        0.5
    """
    return LIKELIHOODS[LIKELIHOOD_OF_TASK[task]](**options)


def typed(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the likelihood of `task`, from text or typed values.

    Raises:
        OptionError: it has no such option, or refuses the value.

    Example:
        >>> typed("regression", {"scale": "0.5"})
        {'scale': 0.5}
    """
    name = LIKELIHOOD_OF_TASK[task]
    hints = _hints(LIKELIHOODS[name])
    values = {}
    for option, value in options.items():
        if option not in hints:
            raise OptionError(
                f"the {name} likelihood has no option {option!r}: it has "
                f"{', '.join(hints) or 'none'}{near(option, hints)}"
            )
        values[option] = read_as(hints[option], f"{name} likelihood: expected {option}", value)
    likelihood_of(task, values)  # raises what the likelihood refuses
    return values


def _hints(kind: type[Likelihood]) -> dict[str, Any]:
    """The types of the constructor's named arguments."""
    hints = typing.get_type_hints(kind.__init__)
    named = inspect.signature(kind).parameters.values()
    return {each.name: hints[each.name] for each in named if each.kind not in STARRED}
