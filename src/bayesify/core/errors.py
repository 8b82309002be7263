"""The errors a user can meet. Every message says what was expected, what came, and what to do.

All of them descend from `BayesifyError`, so a program (the command line, say) can tell a mistake in
the input from a bug in the library with one `except`.
"""


class BayesifyError(Exception):
    """A mistake that the user can mend; the message says how."""


class OptionError(BayesifyError, ValueError):
    """An option has a value that makes no sense: zero epochs, a negative rate, an unknown name."""


class DataError(BayesifyError, ValueError):
    """The data cannot be used: missing, empty, not finite, of one class, labels out of range."""


class ShapeError(BayesifyError, ValueError):
    """A tensor has another shape than the model or the likelihood needs."""


class UnsupportedModelError(BayesifyError, TypeError):
    """A method cannot run on this model at all."""


class UnsupportedLayerError(BayesifyError, TypeError):
    """A method cannot treat a layer; the message names it."""


class DivergenceError(BayesifyError, ArithmeticError):
    """Training produced a loss that is not finite."""


class NotPositiveDefiniteError(BayesifyError, ArithmeticError):
    """A matrix has no Cholesky factor; the message names it and its smallest eigenvalue."""


class LoadError(BayesifyError):
    """A saved posterior is truncated, foreign, or does not fit the model."""
