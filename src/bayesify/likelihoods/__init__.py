"""p(y | network output): what the numbers that a network returns mean.

A likelihood reads outputs (S, B, ...) with the sample axis first and gives log densities in nats
*per example*: the labels, positions or dimensions of one example are summed, so that an objective
made of it weighs data and prior rightly.
"""

from bayesify.core.errors import OptionError
from bayesify.likelihoods.base import Likelihood
from bayesify.likelihoods.bernoulli import Bernoulli
from bayesify.likelihoods.categorical import Categorical
from bayesify.likelihoods.gaussian import Gaussian

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}

LIKELIHOOD_OF_TASK = {each.task: name for name, each in LIKELIHOODS.items()}
"""Name of the likelihood that belongs to a task."""


def resolve(likelihood: "str | Likelihood") -> Likelihood:
    """The likelihood itself, or a new one by name.

    Raises:
        OptionError: when the name is unknown.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise OptionError(
            f"likelihood {likelihood!r}: expected one of {', '.join(LIKELIHOODS)}, or a Likelihood."
        )
    return LIKELIHOODS[likelihood]()
