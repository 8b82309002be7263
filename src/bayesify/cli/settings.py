"""`--set NAME=VALUE`: options that are no flag of their own."""

from collections.abc import Iterable

from bayesify.core.errors import OptionError


def assignments(texts: Iterable[str]) -> dict[str, str]:
    """Values by name.

    Raises:
        OptionError: a text is no assignment.

    Example:
        >>> assignments(["pretrain.epochs=20"])
        {'pretrain.epochs': '20'}
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise OptionError(f"--set {text}: expected NAME=VALUE, such as pretrain.epochs=20.")
        values[name.strip()] = value.strip()
    return values
